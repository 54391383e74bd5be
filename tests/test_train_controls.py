"""MAE and data2vec: their losses and targets, written out once more."""

import pytest
import torch
import torch.nn.functional as F

for package in ("lightning", "torchvision", "timm"):
    pytest.importorskip(package, reason="the driver needs pip install ssl_fast[train]")

from ssl_fast.train import masks  # noqa: E402
from ssl_fast.train.methods import METHODS, Batch  # noqa: E402
from ssl_fast.train.models import build_encoder, sine_positions  # noqa: E402

DECODER = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
SMALL = {
    "mae": DECODER,
    "data2vec": {"top_blocks": 2, "block_patches": 4, "momentum": 0.5, **DECODER},
}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(3, 2, 32, 32)


def build(name, encoder="vit-32/8", **options):
    torch.manual_seed(1)
    return METHODS[name](build_encoder(encoder, 2, 32), **SMALL[name] | options)


def batch(images):
    return Batch([images], torch.arange(len(images)))


def patch(images, number, side=8):  # (N, C, side, side)
    across = 32 // side
    row, column = side * (number // across), side * (number % across)
    return images[:, :, row : row + side, column : column + side]


@pytest.mark.parametrize(("encoder", "side"), [("vit-32/8", 8), ("small-4", 4)])
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_mae_is_the_mean_square_on_hidden_patches(norm_pixels, encoder, side, images):
    """mean over pixels, then (loss * mask).sum() / mask.sum(), of facebookresearch/mae."""
    method = build("mae", encoder, norm_pixels=norm_pixels)
    torch.manual_seed(2)
    found = method.loss(batch(images)).loss
    torch.manual_seed(2)
    count = (32 // side) ** 2
    keep = masks.random_keep(torch.rand(3, count), 0.75)
    encoder, decoder = method.online
    painted = decoder(encoder.visible(images, keep), keep)
    total, seen = 0.0, 0
    for number in range(count):
        pixels = patch(images, number, side).flatten(1)
        if norm_pixels:
            pixels = (pixels - pixels.mean(1, True)) / (pixels.var(1, keepdim=True) + 1e-6).sqrt()
        hidden = ~(keep == number).any(1)
        total += ((painted[:, number] - pixels).square().mean(1) * hidden).sum()
        seen += hidden.sum()
    assert seen == 3 * count * 3 // 4
    torch.testing.assert_close(found, total / seen)


def test_maes_encoder_never_sees_hidden_patches(images):
    vit = build("mae").online[0]
    keep = masks.random_keep(torch.rand(3, 16), 0.75)
    shown = torch.zeros(3, 16).scatter_(1, keep, 1.0).view(3, 1, 4, 4)
    black = images * F.interpolate(shown, (32, 32))
    torch.testing.assert_close(vit.visible(images, keep), vit.visible(black, keep))
    assert vit.visible(images, keep).shape == (3, 5, 32)
    torch.testing.assert_close(vit(images), vit.tokens(images)[:, 1:].mean(1))


def test_maes_decoder_puts_each_token_at_its_place():
    """Visible tokens in another order, with their places, paint the same."""
    _, decoder = build("mae").online
    keep, tokens = masks.random_keep(torch.rand(3, 16), 0.5), torch.randn(3, 9, 32)
    order = torch.randperm(8)
    other = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1)
    torch.testing.assert_close(decoder(other, keep[:, order]), decoder(tokens, keep))
    assert not torch.allclose(decoder(other, keep), decoder(tokens, keep))


def test_maes_decoder_sees_a_pooled_map_alone(images):
    """Of a convolutional net: the encoding, of what is shown, and no place."""
    encoder, decoder = build("mae", "small-4").online
    keep, other = (
        masks.random_keep(torch.rand(3, 64), 0.5),
        masks.random_keep(torch.rand(3, 64), 0.5),
    )
    tokens = encoder.visible(images, keep)
    assert torch.equal(tokens[:, 0], encoder(images, keep=keep))
    assert torch.equal(decoder(tokens, keep), decoder(tokens, other))
    hidden = torch.ones(3, 64).scatter_(1, keep, 0.0).view(3, 1, 8, 8)
    changed = images + F.interpolate(hidden, (32, 32))
    assert torch.equal(encoder.visible(changed, keep), tokens)


@pytest.mark.parametrize("size", [36, 4])
def test_squares_are_eighths_of_the_side(size):
    with pytest.raises(ValueError, match="no multiple of 8"):
        METHODS["mae"](build_encoder("small-4", 2, size), **DECODER)


def test_positions_are_fixed_and_differ():
    positions = sine_positions((4, 4), 32)
    assert positions.shape == (1, 17, 32)
    assert not positions[0, 0].any()
    assert torch.pdist(positions[0]).min() > 0.1
    assert not build("mae").online[0].network.pos_embed.requires_grad


def test_data2vecs_loss_and_targets(images):
    """Layer norm of each block's output, their mean, layer norm; smooth L1 where hidden."""
    method = build("data2vec")
    torch.manual_seed(2)
    found = method.loss(batch(images)).loss
    torch.manual_seed(2)
    mask = masks.block_masks(torch.rand(3, 58), (4, 4), 0.6, 0.6, share=1.0)
    network = method.target.module.network
    x, outputs = network._pos_embed(network.patch_embed(images)), []
    for block in network.blocks:
        x = block(x)
        outputs.append(F.layer_norm(x[:, 1:], (32,)))
    target = F.layer_norm((outputs[-1] + outputs[-2]) / 2, (32,))
    vit, predict = method.online
    error = (predict(vit.tokens(images, mask, method.mask_token)[:, 1:]) - target).abs()
    assert mask.sum() == 3 * 10
    loss = torch.where(error < 2, error.square() / 4, error - 1)[mask].mean()
    torch.testing.assert_close(found, loss)


def test_data2vec_of_a_convolutional_net(images):
    """Layer norm of each stage's map on 8 x 8 squares, smooth L1 where hidden, mean of both."""
    method = build("data2vec", "small-4")
    torch.manual_seed(2)
    found = method.loss(batch(images)).loss
    torch.manual_seed(2)
    mask = torch.ones(3, 64, dtype=torch.bool)
    mask.scatter_(1, masks.random_keep(torch.rand(3, 64), 0.6), False)
    x, targets = images, []
    for layer in list(method.target.module)[:-2]:
        x = layer(x)
        targets.append(x)
    rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
    # maps of 4 x 4 and of 2 x 2: a square takes the cell that it lies in
    targets = [
        F.layer_norm(m[:, :, rows // side, columns // side].mT, m.shape[1:2])
        for m, side in zip(targets[-2:], (2, 4), strict=True)
    ]
    encoder, head = method.online
    shown = (~mask).float().view(3, 1, 8, 8)
    encoding = encoder(images * F.interpolate(shown, (32, 32)))
    painted = head(encoding[:, None], torch.zeros(3, 0, dtype=torch.long))
    losses = []
    for part, target in zip(painted.split([16, 32], 2), targets, strict=True):
        error = (part - target).abs()
        losses.append(torch.where(error < 2, error.square() / 4, error - 1)[mask].mean())
    torch.testing.assert_close(found, sum(losses) / 2)


def test_data2vecs_teacher_follows(images):
    method = build("data2vec")
    method.loss(batch(images))
    weight, average = (
        e.network.blocks[0].mlp.fc1.weight for e in (method.online[0], method.target.module)
    )
    before = average.clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.loss(batch(images)).loss.backward()
    torch.testing.assert_close(average, before + 0.5)
    assert average.grad is None
    assert weight.grad.abs().sum() > 0
    assert method.mask_token.grad.abs().sum() > 0
