"""One file a method; importing this package registers them all."""

from lorachord.methods.hydralora import HydraLoRA
from lorachord.methods.lora import LoRA
from lorachord.methods.mosld import MoSLD
from lorachord.methods.mtl_lora import MTLLoRA
from lorachord.methods.multilora import MultiLoRA

__all__ = ["HydraLoRA", "LoRA", "MTLLoRA", "MoSLD", "MultiLoRA"]
