"""The contract on a GPU, the same numbers there as on a CPU, and no step that waits for it."""

from typing import Any

import pytest
import torch

import lorachord as lc
from lorachord.surgery.surgeon import Surgeon
from lorachord.tuner.prompt_clusters import embed_prompts, encoder_of
from tests.contract import cases, contract, surgery
from tests.contract.cases import CASES, Case
from tests.contract.contract import MIXED, MethodContract, gradients, logits, make_model
from tests.contract.surgery import SurgeryContract
from tests.tiny_models import tiny, token_ids

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and tokens of the contract are made there; tasks and masks stay where a user would make them."""
    for module in (cases, contract, surgery):
        for name, make in (("tiny", tiny), ("token_ids", token_ids)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *args, make=make, **settings: make(*args, **settings).cuda())


@pytest.mark.usefixtures("on_gpu")
class TestMethodsOnGpu(MethodContract, SurgeryContract):
    cases = CASES


class TestBesideTheCpu:
    cases = CASES

    @pytest.mark.parametrize("surgical", [False, True])
    def test_a_step_gives_the_same_numbers(self, case: Case, architecture: str, surgical: bool) -> None:
        results = []
        for device in ("cpu", "cuda"):
            model = make_model(case, architecture).double().to(device)
            surgeon = Surgeon(model) if surgical else None
            output = logits(model, MIXED, input_ids=token_ids().to(device))
            loss = output.square().mean() + lc.penalty(model)
            loss.backward()
            if surgeon is not None:
                surgeon.operate()
            found = {name: gradient.cpu() for name, gradient in gradients(model).items()}
            results.append(({"output": output.detach().cpu(), "loss": loss.detach().cpu()}, found))
        for expected, found in zip(*results, strict=True):
            assert found.keys() == expected.keys()
            for name in found:
                # Llama's angles are float32 everywhere, and rounded otherwise there.
                slack = 1e-6 if architecture == "llama" else 1e-9
                torch.testing.assert_close(
                    found[name], expected[name], rtol=slack, atol=slack, msg=lambda m, n=name: f"{n}: {m}"
                )

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_generation_writes_the_same(self, case: Case, architecture: str) -> None:
        written = []
        for device in ("cpu", "cuda"):
            model = make_model(case, architecture).double().to(device)
            with lc.on_task(model, torch.tensor(MIXED)):
                tokens = model.generate(input_ids=token_ids().to(device), max_new_tokens=5, do_sample=False)
            written.append(tokens.cpu())
        assert torch.equal(*written)

    @pytest.mark.parametrize("surgical", [False, True])
    def test_no_step_waits_for_the_gpu(self, case: Case, surgical: bool) -> None:
        model = make_model(case, "llama").cuda().train()
        surgeon = Surgeon(model) if surgical else None
        tokens = token_ids().cuda()
        optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)

        def step() -> None:
            optimizer.step()
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(input_ids=tokens, attention_mask=None).logits.float().square().mean() + lc.penalty(model)
            loss.backward()

        # As in training, where embeddings are made once a row.
        embedding = embed_prompts(model, {"input_ids": tokens}) if encoder_of(model) else None
        with lc.on_task(model, torch.tensor(MIXED), prompt_mask=torch.ones(1, 4), embedding=embedding):
            step()
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        if surgeon is not None:
            surgeon.operate()
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())


CALIBRATED: list[tuple[str, dict[str, Any]]] = [("thanora", {"r": 6}), ("allot", {"r": 2, "num_ups": 2})]


@pytest.mark.parametrize(("method", "options"), CALIBRATED)
def test_calibrating_there_finds_the_same(method: str, options: dict[str, Any]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        base = tiny("llama").double().to(device)
        batches = {
            task: [{"input_ids": token_ids(seed=seed + 10 * part).to(device)} for part in range(4)]
            for seed, task in enumerate("ab")
        }
        loss = lambda model, batch: model(**batch).logits.logsumexp(-1).mean()  # noqa: E731
        calibration = lc.calibrate(base, method, tasks=["a", "b"], batches=batches, loss=loss, **options)
        model = lc.attach(base, method, calibration=calibration)
        assert {parameter.device.type for parameter in model.parameters()} == {device}
        found.append(calibration.found)
    assert found[0] == found[1]
