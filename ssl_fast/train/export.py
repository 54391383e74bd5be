"""The trained encoder for those who do not have this package: weights, program, model card."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from .. import __version__
from . import report
from .config import TrainOptions
from .data import Source
from .files import whole_file, write_text
from .methods import find_method
from .models import ViT

STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
CARD = """\
# {method} on {data}

`{encoder}`, {parameters:,} parameters, trained without labels by ssl_fast {version}.

- Method: {paper} ({equation}), {epochs} epochs, seed {seed}.
- Data: {data}, {images} images; for the measures below their labels, and {tests} test images.
- Input: (N, {channels}, {size}, {size}), {values}. Output: encodings (N, {dim}).

## Use

`encoder.pt2` holds weights and network; it needs PyTorch alone, and images of this size.

```python
import torch

encoder = torch.export.load("encoder.pt2").module()
encodings = encoder(torch.zeros(8, {channels}, {size}, {size}))
```

{weights}
## Measures

{scores}
## Configuration

```yaml
{config}```
"""
WITH_TIMM = """\
`encoder.safetensors` holds the weights under timm's names.

```python
import timm, torch
from safetensors.torch import load_file

{lines}
encoder.load_state_dict(load_file("encoder.safetensors"))
encodings = encoder.eval()(torch.zeros(8, {channels}, {size}, {size}))
```
"""
WITH_SSL_FAST = """\
`encoder.safetensors` holds the weights for `ssl_fast.train.models.build_encoder({name!r}, \
{channels}, {size})`: no other library has this network.
"""


def write(
    folder: Path,
    encoder: nn.Module,
    options: TrainOptions,
    source: Source,
    scores: report.Scores,
) -> None:
    """encoder.safetensors, encoder.pt2 and MODEL_CARD.md in a folder that has a config.yaml."""
    encoder = copy.deepcopy(encoder).cpu().eval()
    shape = source.channels, source.image_size, source.image_size
    weights, lines = _for_timm(encoder, options.encoder, *shape[:2])
    facts = {"method": options.method, "data": options.data, "encoder": options.encoder}
    with whole_file(folder / "encoder.safetensors") as temporary:
        # save_file would make the file its owner's alone
        temporary.write_bytes(save({k: v.contiguous() for k, v in weights.items()}, facts))
    example = torch.zeros(2, *shape)
    batch = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(encoder, (example,), dynamic_shapes=(batch,))
    with whole_file(folder / "encoder.pt2") as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)
    write_text(folder / "MODEL_CARD.md", _card(folder, encoder, options, source, scores, lines))


def _card(folder, encoder, options, source, scores, lines) -> str:
    method = find_method(options.method)
    sizes = {"channels": source.channels, "size": source.image_size}
    template = WITH_TIMM if lines else WITH_SSL_FAST
    measured = "Encodings are the output, embeddings the projector's."
    normalised = "RGB from 0 to 1, minus {}, divided by {}".format(*source.statistics)
    return CARD.format(
        method=options.method,
        data=options.data,
        encoder=options.encoder,
        parameters=sum(p.numel() for p in encoder.parameters()),
        version=__version__,
        paper=method.paper,
        equation=method.equation,
        epochs=options.epochs,
        seed=options.seed,
        images=len(source.pretrain),
        tests=len(source.test),
        values="values from 0 to 1" if source.plain is None else normalised,
        dim=encoder.dim,
        weights=template.format(lines="\n".join(lines), name=options.encoder, **sizes),
        scores=report.table(scores, measured).markdown(),
        config=(folder / "config.yaml").read_text(),
        **sizes,
    )


def _for_timm(
    encoder: nn.Module, name: str, channels: int, size: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights under timm's names, and the lines that build the network; none for our own."""
    if isinstance(encoder, ViT):
        vit: Any = encoder.network
        pool = ', global_pool="avg", fc_norm=False' if vit.global_pool == "avg" else ""
        line = (
            f"encoder = timm.models.VisionTransformer({size}, {encoder.patch}, {channels}, 0, "
            f"embed_dim={encoder.dim}, depth={len(vit.blocks)}, "
            f"num_heads={vit.blocks[0].attn.num_heads}, dynamic_img_size=True{pool})"
        )
        return vit.state_dict(), [line]
    if not name.startswith("resnet"):
        return encoder.state_dict(), []
    weights = {}
    for key, value in encoder.state_dict().items():
        stage, rest = key.split(".", 1)
        weights[f"{STAGES[stage]}.{rest}"] = value
    name = name.removesuffix("-pad2")  # the stem below has it
    line = f'encoder = timm.create_model("{name}", num_classes=0, in_chans={channels})'
    return weights, [line, *_small_stem(encoder, channels)]


def _small_stem(encoder: Any, channels: int) -> list[str]:
    stem = encoder[0]
    if isinstance(encoder[3], nn.MaxPool2d):
        return []
    return [
        f"encoder.conv1 = torch.nn.Conv2d({channels}, {stem.out_channels}, "
        f"{stem.kernel_size[0]}, padding={stem.padding[0]}, bias=False)",
        "encoder.maxpool = torch.nn.Identity()",
    ]
