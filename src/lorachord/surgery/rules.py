"""Rules: Gramians of task gradients in, weights of the tasks out.

Every rule here replaces the sum of the task gradients by a weighted sum, and reads of the gradients nothing but their
inner products. The Gramian of gradients laid end to end is the sum of their Gramians, so *granularity* is which ones
are summed before the rule is asked: each factor's own, those of one role, or all.

A gradient's scale: with `sum` (the default), what does not conflict is left as it is, the plain sum; with `mean` it is
divided by T, the number of tasks that are present.

Shapes: N Gramians, T tasks.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lorachord.messages import suggest

Tasks = tuple[int, ...]
REDUCTIONS = ("sum", "mean")
ORDERS = ("random", "fixed")


class Rule(ABC):
    """One rule. Classes are this one, or final.

    Attributes:
        name: in a recipe.
        needs_halves: whether `observe` wants the Gramians of two halves of each task's samples before each step.
    """

    name: ClassVar[str]
    needs_halves: ClassVar[bool] = False

    def observe(self, gramians_NSS: Tensor, sizes_S: Tensor) -> None:
        """Take in the halves of one step; see `Significant`, the rule that needs them."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What is remembered from step to step and belongs in a checkpoint. Default: nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        assert not state, f"{self.name} remembers nothing"

    @abstractmethod
    def weights(self, gramians_NTT: Tensor, step: int, present: Tasks | None = None) -> Tensor:
        """The weights (N, T) of the tasks' gradients.

        Args:
            gramians_NTT: inner products, at least float32; a task whose gradient is zero has a zero row.
            step: the optimiser step, from 0, for what is drawn at random.
            present: the numbers of the T tasks, for what is remembered of them. Default: 0 to T - 1.
        """


@final
@dataclass(frozen=True, kw_only=True)
class OrthoLora(Rule):
    """Ortho-LoRA (arXiv 2601.09684): PCGrad (arXiv 2001.06782) within every factor.

        for each i:  v_i = g_i;  for j != i in random order:  if <v_i, g_j> < 0:  v_i -= <v_i, g_j> / |g_j|^2 g_j

    with g_j the original gradient; the result is the sum of the v_i. With one Gramian over everything it is PCGrad.
    On Gramians: v_i is a row of coefficients, and T - 1 projections run for all tasks and all factors at once.

    Differs from public codes: no epsilon in the denominator (1e-5 makes the projection inert for the small gradients of
    adapters), a gradient that is exactly zero is skipped (at step 0 all of A's are), j = i is left out.

    Args:
        order: `random` (a permutation per task and step, the same for all factors and ranks) or `fixed` (by index).
        reduction: `sum` (the paper's) or `mean`.
        seed: of the permutations. Default 0.
    """

    name = "ortho_lora"
    order: str = "random"
    reduction: str = "sum"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, value, known in (("order", self.order, ORDERS), ("reduction", self.reduction, REDUCTIONS)):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{self.name}: there is no {field} {value!r}. {suggest(str(value), known)}")

    def weights(
        self, gramians_NTT: Tensor, step: int, present: Tasks | None = None, among_NTT: Tensor | None = None
    ) -> Tensor:
        """The weights (N, T).

        Args:
            gramians_NTT, step, present: as in `Rule`.
            among_NTT: the pairs that may be projected. Default: all.
        """
        num_tasks = gramians_NTT.shape[-1]
        norms_NT = gramians_NTT.diagonal(dim1=-2, dim2=-1)
        coefficients_NTT = torch.eye(num_tasks).to(gramians_NTT).repeat(len(gramians_NTT), 1, 1)
        every = torch.arange(num_tasks)
        # The v_i do not look at each other: the k-th projection of all of them at once.
        for js in torch.tensor(self.orders(num_tasks, step)).t():
            dot_NT = torch.einsum("nit,nti->ni", coefficients_NTT, gramians_NTT[:, :, js])
            norm_NT = norms_NT[:, js]
            conflict_NT = (dot_NT < 0) & (norm_NT > 0)
            if among_NTT is not None:
                conflict_NT &= among_NTT[:, every, js]
            share_NT = torch.where(conflict_NT, dot_NT / norm_NT, 0)
            coefficients_NTT[:, every, js] -= share_NT
        weights_NT = coefficients_NTT.sum(1)
        return weights_NT / num_tasks if self.reduction == "mean" else weights_NT

    def orders(self, num_tasks: int, step: int) -> list[list[int]]:
        """For each task, the others in the order in which they are projected out."""
        if self.order == "fixed":
            return [[j for j in range(num_tasks) if j != i] for i in range(num_tasks)]
        # One stream a step: what was drawn before, and on which rank, does not matter.
        generator = torch.Generator().manual_seed(hash((self.seed, step)) % 2**63)
        drawn = [torch.randperm(num_tasks, generator=generator).tolist() for _ in range(num_tasks)]
        return [[j for j in order if j != i] for i, order in enumerate(drawn)]


@final
class Sum(Rule):
    """The plain sum: what training without surgery follows."""

    name = "sum"

    def weights(self, gramians_NTT: Tensor, step: int, present: Tasks | None = None) -> Tensor:
        """Ones."""
        return torch.ones_like(gramians_NTT[:, 0])


# By the name here: TorchJD's class and the defaults where it has none.
_TORCHJD: dict[str, tuple[str, Mapping[str, Any]]] = {
    "upgrad": ("UPGradWeighting", {}),
    "mgda": ("MGDAWeighting", {}),
    "cagrad": ("CAGradWeighting", {"c": 0.4}),
    "imtl_g": ("IMTLGWeighting", {}),
    # Clipping comes after surgery.
    "nash_mtl": ("NashMTL", {"max_norm": 0.0}),
    "aligned_mtl": ("AlignedMTLWeighting", {}),
    "gradvac": ("GradVacWeighting", {}),
}
MEAN_LIKE = ("upgrad", "mgda", "cagrad", "imtl_g", "nash_mtl", "aligned_mtl")
"""Rules whose papers average: T equal gradients come out as one of them, not as their sum."""
GPL_RULES = ("upgrad", "nash_mtl")
"""Rules with solvers under the GPL, quadprog and ecos. The extra `surgery-gpl` brings them; `surgery` does not."""


def zoo_names() -> tuple[str, ...]:
    """The rules that TorchJD has."""
    return tuple(_TORCHJD)


@final
class TorchJD(Rule):
    """A weighting of TorchJD (https://torchjd.org), which has the zoo: UPGrad (arXiv 2406.16232), MGDA (1810.04650),
    CAGrad (2110.14048), IMTL-G (ICLR 2021), Nash-MTL (2202.01017), Aligned-MTL (2305.19000), GradVac (2010.05874).

    Each Gramian is a small problem of its own, solved one after another: meant for `granularity: global` or `role`.
    GradVac and Nash-MTL remember earlier steps, for each Gramian and each set of tasks that were present together; a
    resumed run begins that anew. What is drawn at random depends on the step alone, so it is the same on all ranks. A
    step whose inner products are not finite, as mixed precision has them, is left to the plain sum.

    Args:
        name: one of `zoo_names()`.
        reduction: `sum` (default) multiplies the weights of rules that average by T, so that one learning rate serves
            all rules; `own` leaves them as their papers have them.
        **options: the weighting's own.

    Raises:
        ValueError: an unknown name or option, or TorchJD or the rule's solver is not installed.
    """

    def __init__(self, name: str, reduction: str = "sum", **options: Any) -> None:
        if name not in _TORCHJD:
            raise ValueError(f"There is no rule {name!r}. {suggest(name, _TORCHJD)}")
        if reduction not in ("sum", "own"):
            raise ValueError(f"{name}: there is no reduction {reduction!r}. {suggest(reduction, ('sum', 'own'))}")
        self.rule, self.options = name, options
        self.scales = reduction == "sum" and name in MEAN_LIKE
        self.solvers: dict[tuple[Tasks, int], list[Callable[[Tensor], Tensor]]] = {}
        self._solver(num_tasks=2)

    def weights(self, gramians_NTT: Tensor, step: int, present: Tasks | None = None) -> Tensor:
        num_tasks = gramians_NTT.shape[-1]
        if not gramians_NTT.isfinite().all():
            return torch.ones_like(gramians_NTT[:, 0])
        key = (present or tuple(range(num_tasks)), len(gramians_NTT))
        if key not in self.solvers:
            self.solvers[key] = [self._solver(num_tasks) for _ in gramians_NTT]
        # The zoo draws from torch's global generator.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(step)
            found = [solve(gramian_TT) for solve, gramian_TT in zip(self.solvers[key], gramians_NTT, strict=True)]
        weights_NT = torch.stack(found).to(gramians_NTT)
        return weights_NT * num_tasks if self.scales else weights_NT

    def _solver(self, num_tasks: int) -> Callable[[Tensor], Tensor]:
        try:
            import torchjd.aggregation as zoo  # type: ignore[import-not-found, unused-ignore]

            cls, defaults = _TORCHJD[self.rule]
            if self.rule == "nash_mtl":
                aggregate = zoo.NashMTL(num_tasks, **{**defaults, **self.options})

                def bargain(gramian_TT: Tensor) -> Tensor:
                    with warnings.catch_warnings():
                        # About the speed of the solver that it builds.
                        warnings.filterwarnings("ignore", message="You are solving a parameterized problem")
                        # It asks for gradients, but looks at their inner products alone, which any root has.
                        weights_T: Tensor = aggregate.weighting(_root(gramian_TT))
                    return weights_T

                return bargain
            made = getattr(zoo, cls)(**{**defaults, **self.options})
        except ImportError as error:
            extra = "surgery-gpl" if self.rule in GPL_RULES else "surgery"
            raise ValueError(f"{self.rule} is TorchJD's: pip install 'lorachord[{extra}]' ({error}).") from None
        except TypeError as error:
            raise ValueError(f"{self.rule}: {error}") from None
        return made  # type: ignore[no-any-return]


def _root(gramian_TT: Tensor) -> Tensor:
    """A square matrix J with J J^T the Gramian."""
    values_T, vectors_TT = torch.linalg.eigh(gramian_TT)
    root_TT: Tensor = vectors_TT * values_T.clamp_min(0).sqrt()
    return root_TT
