"""The types of the names that ``__init__.py`` imports when they are first used."""

from megatron_cod.analysis.metrics import Metrics as Metrics
from megatron_cod.analysis.metrics import read_metrics as read_metrics
from megatron_cod.data.preprocessing.job import PreprocessJob as PreprocessJob
from megatron_cod.data.preprocessing.run import preprocess as preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice as TokenizerChoice
from megatron_cod.depth_map import StageLayers as StageLayers
from megatron_cod.depth_map import check_depth_map as check_depth_map
from megatron_cod.depth_map import stage_layers as stage_layers
from megatron_cod.errors import UserError as UserError
from megatron_cod.huggingface.export import export_model as export_model
from megatron_cod.huggingface.export_job import ExportJob as ExportJob
from megatron_cod.huggingface.importing import ImportJob as ImportJob
from megatron_cod.huggingface.importing import import_model as import_model
from megatron_cod.huggingface.memory import load_as_transformers as load_as_transformers
from megatron_cod.pipeline import PipelineSplit as PipelineSplit
from megatron_cod.pipeline import StagePlan as StagePlan
from megatron_cod.pipeline import plan_pipeline as plan_pipeline
from megatron_cod.schemes.depth import depth_factor as depth_factor
from megatron_cod.schemes.row import Scheme as Scheme
from megatron_cod.schemes.table import SCHEMES as SCHEMES
from megatron_cod.schemes.table import register_scheme as register_scheme

__version__: str
__all__: list[str]
_MODULE_OF: dict[str, str]
