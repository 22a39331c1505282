"""One file a method; importing this package registers them all."""

from lorachord.methods.hydralora import HydraLoRA as HydraLoRA
from lorachord.methods.lora import LoRA as LoRA
from lorachord.methods.malora import MALoRA as MALoRA
from lorachord.methods.mode import MoDE as MoDE
from lorachord.methods.moelora import MoELoRA as MoELoRA
from lorachord.methods.mosld import MoSLD as MoSLD
from lorachord.methods.mtl_lora import MTLLoRA as MTLLoRA
from lorachord.methods.multilora import MultiLoRA as MultiLoRA
