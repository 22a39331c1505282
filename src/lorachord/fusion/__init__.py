"""Finished adapters into one.

vectors = TaskVectors.from_adapters(base, {"cola": folder_a, "sst2": folder_b})
model = lorachord.fuse(vectors, Average())          # a PeftModel with one plain LoRA
"""

from lorachord.fusion.adamerging import AdaMerging as AdaMerging
from lorachord.fusion.arithmetic import Average as Average
from lorachord.fusion.arithmetic import Dare as Dare
from lorachord.fusion.arithmetic import TaskArithmetic as TaskArithmetic
from lorachord.fusion.arithmetic import Ties as Ties
from lorachord.fusion.collapse import Collapse as Collapse
from lorachord.fusion.concrete import Concrete as Concrete
from lorachord.fusion.inputs import Inputs as Inputs
from lorachord.fusion.merged import Merged as Merged
from lorachord.fusion.method import FusionMethod as FusionMethod
from lorachord.fusion.method import fuse as fuse
from lorachord.fusion.method import merge_vectors as merge_vectors
from lorachord.fusion.noise import with_noise as with_noise
from lorachord.fusion.r_mtllmf import RMTLLMF as RMTLLMF
from lorachord.fusion.task_vectors import TaskVectors as TaskVectors

METHODS: dict[str, type[FusionMethod]] = {
    cls.name: cls for cls in (Average, TaskArithmetic, Ties, Dare, AdaMerging, Concrete, Collapse, RMTLLMF)
}
"""By their names on the command line."""
