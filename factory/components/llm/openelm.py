"""OpenELM (Mehta et al., 2024)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from factory import files
from factory.components.language import Llm
from factory.components.openelm import OpenELMConfig, OpenELMForCausalLM, filled
from factory.errors import UserError
from factory.registry import register


@register("llm", "openelm")
class OpenELM(Llm):
    """OpenELM; its released weights come without a tokenizer (Llama 2's, named as llm.tokenizer)."""

    config_class = OpenELMConfig

    def load(self, config: OpenELMConfig) -> OpenELMForCausalLM:
        folder = Path(self.params.source or "").expanduser()
        if (
            self.params.source is None
            or (folder / "config.json").is_file()
            and files.read_json(folder / "config.json").get("num_transformer_layers") is None
        ):
            return super().load(config)  # random, or saved by this project
        try:
            folder = (
                folder
                if folder.is_dir()
                else Path(snapshot_download(self.params.source, allow_patterns=["*.safetensors"]))
            )
            return filled(
                config,
                {
                    name: t
                    for path in sorted(folder.glob("*.safetensors"))
                    for name, t in files.read_safetensors(path).items()
                },
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, KeyError, RuntimeError) as error:
            raise UserError(
                f"model.compose: {self.params.source}: its weights cannot be read: {str(error).strip().splitlines()[0]}"
            ) from error
