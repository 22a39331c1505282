"""One file a method; importing this package registers them all."""

from lorachord.methods.allot import Allot as Allot
from lorachord.methods.hydralora import HydraLoRA as HydraLoRA
from lorachord.methods.lora import LoRA as LoRA
from lorachord.methods.malora import MALoRA as MALoRA
from lorachord.methods.mixlora import MixLoRA as MixLoRA
from lorachord.methods.mode import MoDE as MoDE
from lorachord.methods.moelora import MoELoRA as MoELoRA
from lorachord.methods.mor1e import MoR1E as MoR1E
from lorachord.methods.mosld import MoSLD as MoSLD
from lorachord.methods.mtl_lora import MTLLoRA as MTLLoRA
from lorachord.methods.multilora import MultiLoRA as MultiLoRA
from lorachord.methods.thanora import ThanoRA as ThanoRA
