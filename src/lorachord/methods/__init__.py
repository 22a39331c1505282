"""One file a method; importing this package registers them all."""

from lorachord.methods.hydralora import HydraLoRA as HydraLoRA
from lorachord.methods.lora import LoRA as LoRA
from lorachord.methods.mosld import MoSLD as MoSLD
from lorachord.methods.mtl_lora import MTLLoRA as MTLLoRA
from lorachord.methods.multilora import MultiLoRA as MultiLoRA
