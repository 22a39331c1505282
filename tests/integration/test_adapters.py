"""PEFT's and transformers' own verbs for adapters: add, set, delete, disable, load, merge, unload, copy."""

import copy
import pickle

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

import lorachord as lc
from lorachord.tuner.walk import modules_of
from tests.integration.helpers import (
    METHODS,
    TASK_TYPES,
    adapted,
    close,
    config,
    differ,
    layers,
    logits,
    task_logits,
)
from tests.tiny_models import perturb, tiny, token_ids

MIXED = ["a", "b", "b", "a"]
MERGEABLE = ("lora", "multilora", "mtl_lora")


@pytest.fixture
def two(architecture: str) -> PeftModel:
    """`default` knows tasks a, b; `other` knows c, b, a, at another rank."""
    model = adapted(architecture, "mtl_lora")
    model.add_adapter("other", config("mtl_lora", tasks=["c", "b", "a"], r=3, task_type=TASK_TYPES[architecture]))
    model.set_adapter("other")
    perturb(model, 0.3, seed=5)
    model.set_adapter("default")
    return model.eval()


def test_modules_are_those_of_torch_in_its_order(two: PeftModel) -> None:
    # One module in two places, and a place without one.
    two.again, two.nothing = two.base_model, None
    assert [*modules_of(two)] == [*two.modules()]


def alone(model: PeftModel, name: str, architecture: str) -> PeftModel:
    """A fresh model that has one of `model`'s adapters and no other."""
    saved = model.peft_config[name]
    single = lc.attach(tiny(architecture), saved.method, tasks=saved.tasks, **saved.options)
    set_peft_model_state_dict(single, get_peft_model_state_dict(model, adapter_name=name))
    return single.eval()


# Several adapters on one model


def test_two_adapters_with_different_task_lists_answer_as_each_alone(two, architecture):
    for name in ("default", "other"):
        two.set_adapter(name)
        for task in two.peft_config[name].tasks:
            assert torch.equal(task_logits(two, task), task_logits(alone(two, name, architecture), task))


def test_a_task_name_picks_each_adapters_own_index(two):
    two.set_adapter("default")
    by_default = task_logits(two, "a")
    assert torch.equal(by_default, task_logits(two, 0))
    two.set_adapter("other")
    by_other = task_logits(two, "a")
    assert torch.equal(by_other, task_logits(two, 2))
    assert differ(by_other, task_logits(two, 0))
    assert differ(by_other, by_default)


def test_adapters_can_be_switched_inside_one_block(two):
    expected = {}
    for name in ("default", "other"):
        two.set_adapter(name)
        expected[name] = task_logits(two, MIXED)
    two.set_adapter("default")
    with lc.on_task(two, MIXED):
        assert torch.equal(logits(two), expected["default"])
        two.set_adapter("other")
        assert torch.equal(logits(two), expected["other"])
    assert differ(expected["default"], expected["other"])


def test_tasks_of_an_inactive_adapter_alone_are_no_tasks_of_the_active_one(two):
    two.set_adapter("default")
    with pytest.raises(ValueError, match="no task 'c'"), lc.on_task(two, "c"):
        pass
    two.set_adapter("other")
    with lc.on_task(two, "c"):
        logits(two)


def test_deleting_the_active_adapter_leaves_the_other_as_it_was(two, architecture):
    expected = task_logits(alone(two, "other", architecture), MIXED)
    two.set_adapter("default")
    with pytest.warns(UserWarning, match="default was active which is now deleted"):
        two.delete_adapter("default")
    assert two.active_adapters == ["other"]
    assert torch.equal(task_logits(two, MIXED), expected)
    assert list(two.peft_config) == ["other"]
    assert all(list(layer.lorachord_adapter) == ["other"] for layer in layers(two).values())


def test_deleting_an_adapter_forgets_its_tasks(two):
    two.delete_adapter("other")
    assert all(list(layer.shared.task_names) == ["default"] for layer in layers(two).values())
    two.add_adapter("other", config("mtl_lora", tasks=["d"], task_type=two.peft_config["default"].task_type))
    two.set_adapter("other")
    assert torch.isfinite(task_logits(two, "d")).all()


def test_only_the_active_adapter_is_trainable(two):
    for name in ("default", "other"):
        two.set_adapter(name)
        trained = [key for key, parameter in two.named_parameters() if parameter.requires_grad]
        assert trained
        assert all(f".{name}." in key for key in trained)


@pytest.mark.parametrize("method", METHODS)
def test_disabled_adapters_leave_the_base_bit_for_bit(architecture, method):
    expected = logits(tiny(architecture))
    model = adapted(architecture, method)
    assert differ(task_logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert differ(task_logits(model), expected)


# What is adapted, and with which sizes


def test_layers_to_transform_adapts_these_blocks_alone():
    model = lc.attach(tiny("llama"), "lora", r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    names = {name.removeprefix("base_model.model.model.") for name in layers(model)}
    assert names == {"layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"}


@pytest.mark.parametrize("exclude", [["q_proj", "down_proj"], r".*\.(q_proj|down_proj)"])
def test_exclude_modules_leaves_these_out_of_all_linear(exclude):
    model = lc.attach(tiny("llama"), "lora", r=2, exclude_modules=exclude)
    assert {name.rpartition(".")[2] for name in layers(model)} == {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}


def test_a_regex_targets_what_it_matches_in_full():
    model = lc.attach(tiny("llama"), "lora", r=2, target_modules=r".*\.0\.self_attn\.[qk]_proj")
    names = {name.removeprefix("base_model.model.model.") for name in layers(model)}
    assert names == {"layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"}


def test_all_linear_leaves_the_output_layer_out(architecture):
    names = {name.rpartition(".")[2] for name in layers(adapted(architecture, "lora"))}
    assert not names & {"lm_head", "classifier"}


def block_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdecimal())


def test_a_tuple_of_ranks_is_spread_over_the_blocks(architecture):
    model = adapted(architecture, "lora", r=(2, 4), alpha=(2, 8), target_modules=r".*\d.*(query|q_proj|c_attn)")
    found = {block_of(name): layer.lorachord_adapter["default"] for name, layer in layers(model).items()}
    assert {block: adapter.down.shape[0] for block, adapter in found.items()} == {0: 2, 1: 4}
    assert {block: adapter.up.shape[1] for block, adapter in found.items()} == {0: 2, 1: 4}
    assert {block: adapter.scale for block, adapter in found.items()} == {0: 1.0, 1: 2.0}
    assert torch.isfinite(logits(model)).all()


def test_a_tuple_of_expert_counts_is_spread_over_the_blocks(architecture):
    model = adapted(architecture, "mosld", r=2, num_experts=(2, 4), target_modules=r".*\d.*(query|q_proj|c_attn)")
    found = {block_of(name): layer.lorachord_adapter["default"] for name, layer in layers(model).items()}
    assert {block: adapter.router.weight.shape[0] for block, adapter in found.items()} == {0: 2, 1: 4}
    assert {block: adapter.up.shape[1] for block, adapter in found.items()} == {0: 4, 1: 8}
    assert torch.isfinite(logits(model)).all()


def test_a_second_adapter_sees_the_same_blocks_as_the_first():
    model = lc.attach(tiny("llama"), "lora", r=(2, 4))
    model.add_adapter("other", config("lora", r=(2, 4)))
    for layer in layers(model).values():
        first, second = layer.lorachord_adapter["default"], layer.lorachord_adapter["other"]
        assert first.layer == second.layer
        assert first.down.shape == second.down.shape


def test_a_second_adapter_on_all_linear_leaves_the_heads_of_the_first_alone():
    model = lc.attach(tiny("bert"), "lora", r=2)
    first = set(layers(model))
    model.add_adapter("other", config("lora", task_type="SEQ_CLS"))
    assert {name for name, layer in layers(model).items() if "other" in layer.lorachord_adapter} == first
    assert type(model.base_model.model.classifier.modules_to_save["default"]) is torch.nn.Linear
    assert not any("modules_to_save" in target for target in model.peft_config["other"].target_modules)
    assert model.peft_config["other"].base_fingerprint == model.peft_config["default"].base_fingerprint


def test_modules_to_save_are_trained_saved_and_loaded(tmp_path):
    model = adapted("llama", "lora", modules_to_save=["lm_head"], target_modules=["q_proj"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "base_model.model.lm_head.modules_to_save.default.weight" in trained
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    assert close(logits(loaded), logits(model))
    head = loaded.base_model.model.lm_head
    assert differ(head.modules_to_save["default"].weight, head.original_module.weight)


@pytest.mark.parametrize("method", METHODS)
def test_peft_and_attach_make_the_same_adapter(method):
    torch.manual_seed(3)
    by_attach = lc.attach(tiny("bert"), method, **METHODS[method])
    options = {key: value for key, value in METHODS[method].items() if key != "tasks"}
    plain = lc.LorachordConfig(method=method, tasks=METHODS[method].get("tasks"), options=options, task_type="SEQ_CLS")
    torch.manual_seed(3)
    by_peft = peft.get_peft_model(tiny("bert"), plain)
    assert type(by_peft) is type(by_attach)
    ours, theirs = (dict(model.named_parameters()) for model in (by_attach, by_peft))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())
    assert {k for k, p in ours.items() if p.requires_grad} == {k for k, p in theirs.items() if p.requires_grad}


# Transformers' own verbs


@pytest.mark.parametrize("method", METHODS)
def test_transformers_add_adapter_makes_a_trainable_adapter(architecture, method):
    model = tiny(architecture)
    expected = logits(model)
    model.add_adapter(config(method), adapter_name="mine")
    assert close(task_logits(model), expected, 1e-7)
    perturb(model, 0.3)
    assert differ(task_logits(model), expected)
    assert all(".mine." in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_transformers_load_adapter_under_another_name(architecture, method, tmp_path):
    model = adapted(architecture, method)
    model.save_pretrained(tmp_path)
    plain = tiny(architecture)
    info = plain.load_adapter(str(tmp_path), adapter_name="mine")
    assert not info.missing_keys
    assert not info.unexpected_keys
    assert close(task_logits(plain), task_logits(model))
    assert differ(task_logits(plain), logits(tiny(architecture)))


def test_transformers_set_and_delete_adapter(tmp_path):
    first, second = adapted("llama", "mtl_lora"), adapted("llama", "hydralora", seed=7)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    plain = tiny("llama")
    plain.load_adapter(str(tmp_path / "first"), adapter_name="first")
    with pytest.warns(UserWarning, match="having multiple adapters"):
        plain.load_adapter(str(tmp_path / "second"), adapter_name="second")
    plain.set_adapter("first")
    assert close(task_logits(plain, MIXED), task_logits(first, MIXED))
    plain.set_adapter("second")
    assert close(logits(plain), logits(second))
    with pytest.warns(UserWarning, match="second was active which is now deleted"):
        plain.delete_adapter("second")
    assert plain.active_adapters() == ["first"]
    assert close(task_logits(plain, MIXED), task_logits(first, MIXED))


def test_a_name_that_transformers_deleted_can_be_used_again():
    plain = tiny("llama")
    plain.add_adapter(config("mtl_lora", tasks=["a", "b"]), adapter_name="mine")
    plain.delete_adapter("mine")
    plain.add_adapter(config("mtl_lora", tasks=["c", "d", "e"]), adapter_name="mine")
    assert close(task_logits(plain, "e"), logits(tiny("llama")), 1e-7)


def test_the_model_answers_as_the_base_once_transformers_deleted_its_last_adapter():
    plain = tiny("llama")
    plain.add_adapter(config("mtl_lora"), adapter_name="mine")
    perturb(plain, 0.3)
    plain.delete_adapter("mine")
    assert torch.equal(logits(plain), logits(tiny("llama")))


# Saving and loading


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_loads_under_another_name(architecture, method, low_cpu_mem_usage, tmp_path):
    model = adapted(architecture, method)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        tiny(architecture), tmp_path, adapter_name="mine", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert not any(buffer.is_meta for buffer in loaded.buffers())
    assert close(task_logits(loaded), task_logits(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_loaded_to_train_trains_all_that_was_trained(architecture, method, tmp_path):
    model = adapted(architecture, method)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(architecture), tmp_path, adapter_name="mine", is_trainable=True)
    trained = {name.replace(".mine.", ".default.") for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    loaded.train()
    with lc.on_task(loaded, MIXED if method == "mtl_lora" else 0):
        loaded(input_ids=token_ids()).logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters() if parameter.requires_grad)


def test_a_second_saved_adapter_loads_beside_the_first(architecture, tmp_path):
    first, second = adapted(architecture, "hydralora"), adapted(architecture, "mtl_lora", seed=7)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    loaded = PeftModel.from_pretrained(tiny(architecture), tmp_path / "first", adapter_name="first")
    loaded.load_adapter(tmp_path / "second", adapter_name="second")
    assert close(logits(loaded), logits(first))
    loaded.set_adapter("second")
    assert close(task_logits(loaded, MIXED), task_logits(second, MIXED))


def test_a_second_adapter_by_regex_is_saved_as_if_it_were_alone(tmp_path):
    model = adapted("llama", "hydralora")
    settings = {"target_modules": r".*layers\.1\.self_attn\.[qk].*", "task_type": "CAUSAL_LM"}
    model.add_adapter("other", config("lora", **settings))
    model.set_adapter("other")
    perturb(model.eval(), 0.3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path / "other")
    assert len(layers(loaded)) == 2
    assert close(logits(loaded), logits(model))


def test_saving_two_adapters_makes_a_folder_for_each(two, architecture, tmp_path):
    two.save_pretrained(tmp_path)
    for name, folder in (("default", tmp_path), ("other", tmp_path / "other")):
        two.set_adapter(name)
        loaded = PeftModel.from_pretrained(tiny(architecture), folder)
        assert loaded.peft_config["default"].tasks == two.peft_config[name].tasks
        assert close(task_logits(loaded, MIXED), task_logits(two, MIXED))


# Merging


@pytest.mark.parametrize("method", MERGEABLE)
def test_merging_in_place_keeps_the_answers_and_unmerging_restores_the_base(architecture, method):
    model = adapted(architecture, method)
    for task in ("a", "b") if method == "mtl_lora" else (0,):
        with lc.on_task(model, task):
            expected = logits(model)
            model.merge_adapter()
            assert all(layer.merged for layer in layers(model).values())
            assert close(logits(model), expected)
            model.unmerge_adapter()
            assert close(logits(model), expected)
    with model.disable_adapter():
        assert close(logits(model), logits(tiny(architecture)))


def test_unmerging_subtracts_the_task_that_was_merged(architecture):
    model = adapted(architecture, "mtl_lora")
    with lc.on_task(model, "a"):
        model.merge_adapter()
    with lc.on_task(model, "b"):
        model.unmerge_adapter()
    with model.disable_adapter():
        assert close(logits(model), logits(tiny(architecture)))


def test_disabling_a_merged_adapter_gives_the_base(architecture):
    model = adapted(architecture, "mtl_lora")
    with lc.on_task(model, "b"):
        model.merge_adapter()
    with model.disable_adapter():
        assert close(logits(model), logits(tiny(architecture)))


@pytest.mark.parametrize("method", MERGEABLE)
def test_merging_and_unloading_leaves_a_plain_model(architecture, method):
    model = adapted(architecture, method)
    expected = task_logits(model, 0)
    with lc.on_task(model, 0):
        merged = model.merge_and_unload()
    assert type(merged) is type(tiny(architecture))
    assert not layers(merged)
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in merged.modules())
    assert {name for name, _ in merged.named_parameters()} == {n for n, _ in tiny(architecture).named_parameters()}
    assert close(logits(merged), expected)
    assert differ(expected, logits(tiny(architecture)))


@pytest.mark.parametrize("method", METHODS)
def test_unloading_gives_the_base_back_bit_for_bit(architecture, method):
    # Without a task type: with one, PEFT hands the trained head back.
    plain = adapted(architecture, method, task_type=None).unload()
    assert torch.equal(logits(plain), logits(tiny(architecture)))
    assert not layers(plain)
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in plain.modules())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_active_adapters_add_up_and_merge_together(architecture):
    model = lc.attach(tiny(architecture).double(), "mtl_lora", **METHODS["mtl_lora"])
    model.add_adapter("other", config("lora", task_type="CAUSAL_LM"))
    singles = []
    for name in ("default", "other"):
        model.set_adapter(name)
        perturb(model.eval(), 0.3)
        singles.append(task_logits(model, "b"))
    model.base_model.set_adapter(["default", "other"])
    both = task_logits(model, "b")
    assert all(differ(both, single) for single in singles)
    with lc.on_task(model, "b"):
        model.merge_adapter()
        assert close(logits(model), both, 1e-9)
        model.unmerge_adapter()
        assert close(logits(model), both, 1e-9)


def test_an_adapter_can_be_merged_by_name_while_one_that_cannot_be_is_active():
    model = adapted("llama", "lora")
    expected = logits(model)
    model.add_adapter("routed", config("hydralora"))
    model.set_adapter("routed")
    model.merge_adapter(["default"])
    assert close(logits(model), expected)


# Dtypes


def test_adapters_stay_float32_on_a_bfloat16_base(architecture):
    model = lc.attach(tiny(architecture).to(torch.bfloat16), "mtl_lora", tasks=["a", "b"], r=2)
    perturb(model, 0.3)
    assert_float32_over_bfloat16(model)


def test_adapters_stay_float32_on_a_bfloat16_base_through_transformers(architecture):
    model = tiny(architecture).to(torch.bfloat16)
    model.add_adapter(config("mtl_lora"))
    perturb(model, 0.3)
    assert_float32_over_bfloat16(model)


@pytest.mark.parametrize("road", ["peft", "transformers"])
def test_loaded_adapters_stay_float32_on_a_bfloat16_base(road, tmp_path):
    saved = lc.attach(tiny("llama").to(torch.bfloat16), "hydralora", r=2)
    perturb(saved, 0.3)
    saved.save_pretrained(tmp_path)
    model = tiny("llama").to(torch.bfloat16)
    if road == "peft":
        model = PeftModel.from_pretrained(model, tmp_path)
    else:
        model.load_adapter(str(tmp_path))
    assert_float32_over_bfloat16(model)
    ours, theirs = ([layer.lorachord_adapter.state_dict() for layer in layers(m).values()] for m in (model, saved))
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        assert all(torch.equal(tensor, their[key]) for key, tensor in our.items())


def assert_float32_over_bfloat16(model: torch.nn.Module) -> None:
    for layer in layers(model).values():
        assert layer.get_base_layer().weight.dtype == torch.bfloat16
        assert {parameter.dtype for parameter in layer.lorachord_adapter.parameters()} == {torch.float32}
    assert task_logits(model).dtype == torch.bfloat16


# Copies


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_model_can_be_copied_after_a_training_forward(architecture, how):
    model = adapted(architecture, "hydralora", balance=0.5).train()
    with_graph = model(input_ids=token_ids()).logits.sum() + lc.penalty(model)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    with_graph.backward()
    assert torch.equal(logits(twin.eval()), logits(model.eval()))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert lc.penalty(twin) == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_the_tasks_of_a_copy_are_its_own(how):
    model = adapted("llama", "mtl_lora")
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    expected = {task: task_logits(model, task) for task in ("a", "b")}
    with lc.on_task(model, "a"), lc.on_task(twin, "b"):
        assert torch.equal(logits(model), expected["a"])
        assert torch.equal(logits(twin), expected["b"])
    assert differ(expected["a"], expected["b"])


# Tasks as a keyword of the forward


@pytest.mark.parametrize("task_type", ["by class", None])
def test_the_forward_keyword_equals_on_task(architecture, task_type):
    settings = {} if task_type else {"task_type": None}
    model = adapted(architecture, "mtl_lora", **settings)
    assert (model.peft_config["default"].task_type is None) == (task_type is None)
    for tasks in (MIXED, "b", 1, torch.tensor([0, 1, 1, 0])):
        assert torch.equal(logits(model, lorachord_tasks=tasks), task_logits(model, tasks))
    assert differ(logits(model, lorachord_tasks="a"), logits(model, lorachord_tasks="b"))


def test_the_forward_keyword_is_for_one_pass_and_goes_before_on_task(architecture):
    model = adapted(architecture, "mtl_lora")
    expected = {task: task_logits(model, task) for task in ("a", "b")}
    with lc.on_task(model, "a"):
        assert torch.equal(logits(model, lorachord_tasks="b"), expected["b"])
        assert torch.equal(logits(model), expected["a"])
    logits(model, lorachord_tasks="b")
    with pytest.raises(ValueError, match="needs the task of each sample"):
        logits(model)


def test_the_keyword_works_on_a_model_that_transformers_adapted(tmp_path):
    model = adapted("llama", "mtl_lora")
    model.save_pretrained(tmp_path)
    plain = tiny("llama")
    plain.load_adapter(str(tmp_path), adapter_name="mine")
    assert close(logits(plain, lorachord_tasks=MIXED), task_logits(model, MIXED))


def test_a_frozen_adapter_of_the_same_method_needs_no_graph_of_its_penalty() -> None:
    model = lc.attach(tiny("llama"), "moelora", **METHODS["moelora"])
    model.add_adapter("frozen", lc.LorachordConfig.build("moelora", **METHODS["moelora"]))
    model.base_model.set_adapter(["default", "frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    model.train()(input_ids=token_ids())
    lc.penalty(model).backward()
    assert all((parameter.grad is not None) == (".default." in name) for name, parameter in model.named_parameters())
