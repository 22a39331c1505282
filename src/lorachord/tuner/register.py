"""Makes PEFT know the tuner, from outside.

`register_peft_method` accepts only members of the closed enum `PeftType`, so a pseudo-member is added first. A plain
string in PEFT's mappings would serve `get_peft_model`, but transformers' `load_adapter` reads `peft_type.value`.
"""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from lorachord.tuner.peft_config import PEFT_NAME, LorachordConfig


def add_member() -> None:
    """Append `PeftType.LORACHORD`; does nothing the second time."""
    if PEFT_NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, PEFT_NAME)
    member._name_ = PEFT_NAME
    member._value_ = PEFT_NAME
    vars(member)["_sort_order_"] = len(PeftType.__members__)
    PeftType._member_names_.append(PEFT_NAME)
    PeftType._member_map_[PEFT_NAME] = member
    PeftType._value2member_map_[PEFT_NAME] = member
    # From Python 3.12 on, members are found as class attributes; the enum's own __setattr__ would not allow it.
    type.__setattr__(PeftType, PEFT_NAME, member)


def register_tuner() -> None:
    """Enter the tuner into PEFT's mappings; does nothing the second time."""
    from lorachord.tuner.lorachord_model import LorachordModel

    add_member()
    if PeftType[PEFT_NAME] not in PEFT_TYPE_TO_TUNER_MAPPING:
        # The prefix must be the name and an underscore: transformers builds it that way.
        register_peft_method(name=PEFT_NAME.lower(), config_cls=LorachordConfig, model_cls=LorachordModel)
