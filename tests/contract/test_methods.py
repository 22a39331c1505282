import lorachord as lc
from tests.contract.cases import CASES
from tests.contract.contract import MethodContract
from tests.contract.surgery import SurgeryContract


class TestMethods(MethodContract, SurgeryContract):
    cases = CASES


def test_every_method_of_the_package_is_under_contract() -> None:
    package = {name for name, cls in lc.all_methods().items() if cls.__module__.startswith("lorachord.")}
    assert {case.method for case in CASES} == package
