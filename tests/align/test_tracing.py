"""Every operation of the nets of today is traced: nothing wrong is found, and nothing is overlooked."""

from math import factorial as f

import pytest
import torch
from orders import equal
from torch import nn
from torch.nn import functional as F

from paramarket import align, data
from paramarket.align import compose, identity, inverse, permutation_spec, permute, random_permutations, sizes
from paramarket.base import stream

E, H, D, HIDDEN = 12, 3, 4, 10  # the stream, heads, units a head, units of the layers between


class Net(nn.Module):
    """A first layer to a stream of tokens, a block, and a head: the stream is hidden on both sides."""

    def __init__(self, block, *, inputs=5, width=E):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(inputs, E), block, nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.block(self.first(x))).mean(1)


class Parts(nn.Module):
    """Named layers and parameters, and what is done with them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def heads(x, count=H):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def attend(q, k, v):
    return (q @ k.mT / 2).softmax(-1) @ v


def projections(k=H * D, v=H * D):
    return {
        "q": nn.Linear(E, H * D),
        "k": nn.Linear(E, k),
        "v": nn.Linear(E, v),
        "o": nn.Linear(v if v > k else H * D, E),
    }


def separate(m, x):
    return x + m.o(joined(F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))))


def by_hand(m, x):
    b, t, _ = x.shape
    q, k, v = (layer(x).view(b, t, H, D).permute(0, 2, 1, 3) for layer in (m.q, m.k, m.v))
    mask = torch.ones(t, t).tril().bool()
    scores = (q @ k.transpose(-2, -1)).masked_fill(~mask, float("-inf"))
    return x + m.o((scores.softmax(dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, E))


def by_einsum(m, x):
    q, k, v = (layer(x).unflatten(-1, (H, D)) for layer in (m.q, m.k, m.v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return x + m.o(torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2))


def slots_first(m, x):
    q, k, v = m.qkv(x).reshape(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
    return x + m.o(joined(attend(q, k, v)))


def heads_first(m, x):
    q, k, v = m.qkv(x).view(*x.shape[:2], H, 3 * D).transpose(1, 2).chunk(3, dim=-1)
    return x + m.o(joined(attend(q, k, v)))


def units_first(m, x):
    q, k, v = (layer(x).unflatten(-1, (D, H)).permute(0, 3, 1, 2) for layer in (m.q, m.k, m.v))
    return x + m.o(attend(q, k, v).permute(0, 2, 3, 1).flatten(2))


def in_split(m, x):
    q, k, v = m.qkv(x).split([E, E, E], dim=-1)
    return x + m.o(joined(attend(heads(q), heads(k), heads(v))))


def grouped_queries(repeat):
    def run(m, x):
        q, k, v = heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2)
        return x + m.o(joined(attend(q, repeat(k), repeat(v))))

    return run


def rotary(m, x):
    t = x.shape[1]
    angles = torch.outer(torch.arange(t).double(), torch.tensor([1.0, 0.3], dtype=torch.float64))
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def turned(z):
        half = torch.cat([-z[..., 2:], z[..., :2]], dim=-1)
        return z * cos + half * sin

    return x + m.o(joined(attend(turned(heads(m.q(x))), turned(heads(m.k(x))), heads(m.v(x)))))


def normed(m, x):
    return x + m.o(joined(attend(m.norm_q(heads(m.q(x))), m.norm_k(heads(m.k(x))), heads(m.v(x)))))


def biased(m, x):
    scores = heads(m.q(x)) @ heads(m.k(x)).mT + m.bias[:, : x.shape[1], : x.shape[1]]
    return x + m.o(joined(scores.softmax(-1) @ heads(m.v(x))))


def rotary_by_complex_numbers(m, x):
    angles = torch.outer(torch.arange(x.shape[1]).double(), torch.tensor([1.0, 0.3], dtype=torch.float64))
    turns = torch.polar(torch.ones_like(angles), angles)

    def turned(z):
        pairs = torch.view_as_complex(z.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2)

    return x + m.o(joined(attend(turned(heads(m.q(x))), turned(heads(m.k(x))), heads(m.v(x)))))


def in_turn(m, x):
    """A recurrent layer by hand, whose states are written into zeros."""
    h, out = torch.zeros(len(x), 5), torch.zeros(*x.shape[:2], 5)
    for t in range(x.shape[1]):
        h = (m.i(x[:, t]) + m.h(h)).tanh()
        out[:, t] = h
    return m.o(out)


def heads_in_turn(m, x):
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    out = torch.zeros_like(x)
    for i in range(H):
        out[..., i * D : (i + 1) * D] = attend(q[:, i], k[:, i], v[:, i])
    return x + m.o(out)


def interleaved(m, x):
    out = torch.empty(*x.shape[:2], 2 * E)
    out[..., 0::2], out[..., 1::2] = m.a(x), m.b(x).relu()
    return m.o(out)


def windows_of_zeros(m, x):
    out = torch.zeros(len(x), 8, 2 * E)
    out[:, 1:7, E:] = x
    return m.o(out)


def across(m, x):
    out = torch.zeros(len(x), E, 8)
    out.transpose(1, 2)[:, :6] = x
    return out.mT


def one_token(m, x):
    x = x.clone()
    x[:, 2], x[:, [0, 4]], x[x < 0] = m.o(x[:, 1]), 0.5, 0.0
    return x


def added_up(m, x):
    out = torch.zeros_like(x)
    out[:, 1:] += m.o(x[:, :-1])
    out += x
    return out


def routed(m, x):
    weights, chosen = m.g(x).topk(2, -1)
    weights = torch.zeros(*x.shape[:2], 3).scatter(-1, chosen, weights.softmax(-1))
    return x + sum(weights[..., k : k + 1] * layer(x) for k, layer in enumerate(m.e))


def codebook(m, x):
    return m.o(F.one_hot(torch.cdist(x, m.codes).argmin(-1), 7).to(x))


def best_tokens(m, x):
    best = m.score(x).squeeze(-1).topk(3, 1).indices
    taken = x[torch.arange(len(x)).unsqueeze(1), best]
    return taken + x.gather(1, best.unsqueeze(-1).expand(-1, -1, E))


def decoded(m, x):
    return x + m.up(m.l(x.mean(1)).view(-1, 8, 4, 4)).mean((2, 3)).unsqueeze(1)


def encoder(**settings):
    return nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True, **settings)


def qkv():
    return {"qkv": nn.Linear(E, 3 * E), "o": nn.Linear(E, E)}


def gqa(m=6, d=2):
    return {"q": nn.Linear(E, m * d), "k": nn.Linear(E, 2 * d), "v": nn.Linear(E, 2 * d), "o": nn.Linear(m * d, E)}


ATTENTION = f(H) * f(D) ** (2 * H)  # heads, and in each the units of queries with keys, and of values
ENCODER = f(E) * ATTENTION * f(HIDDEN)
GROUPED = f(2) * f(3) ** 2 * f(2) ** 4  # groups of heads, heads in each, and each group's units, of keys and of values
TOKENS = {  # a block on the stream [n, tokens, E], and how many orders the whole net has
    "nothing": (nn.Identity, f(E)),
    "LayerNorm": (lambda: nn.LayerNorm(E), f(E)),
    "RMSNorm": (lambda: nn.RMSNorm(E), f(E)),
    "LayerNorm by hand": (lambda: Parts(lambda m, x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)), f(E)),
    "norm last": (encoder, ENCODER),
    "norm first": (lambda: encoder(norm_first=True, activation="gelu"), ENCODER),
    "two layers": (lambda: nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False), f(E) * (ATTENTION * f(HIDDEN)) ** 2),  # noqa: E501
    "MultiheadAttention": (
        lambda: Parts(lambda m, x: x + m.mha(x, x, x)[0], mha=nn.MultiheadAttention(E, H, batch_first=True)),
        f(E) * ATTENTION,
    ),
    "tokens first, no weights": (
        lambda: Parts(lambda m, x: m.mha(x, x, x, need_weights=False)[0], mha=nn.MultiheadAttention(E, H)),
        f(E) ** 2 * ATTENTION,
    ),
    "a key and a value more": (
        lambda: Parts(
            lambda m, x: x + m.mha(x, x, x)[0],
            mha=nn.MultiheadAttention(E, H, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        ),
        f(E) * ATTENTION,
    ),
    "keys of another width": (
        lambda: Parts(
            lambda m, x: x + m.mha(x, m.l(x), x)[0],
            l=nn.Linear(E, 7),
            mha=nn.MultiheadAttention(E, H, kdim=7, batch_first=True),
        ),
        f(E) * ATTENTION * f(7),
    ),
    "scaled_dot_product_attention": (lambda: Parts(separate, **projections()), f(E) * ATTENTION),
    "by hand": (lambda: Parts(by_hand, **projections()), f(E) * ATTENTION),
    "einsum": (lambda: Parts(by_einsum, **projections()), f(E) * ATTENTION),
    "slots, heads, units": (lambda: Parts(slots_first, **qkv()), f(E) * ATTENTION),
    "heads, slots, units": (lambda: Parts(heads_first, **qkv()), f(E) * ATTENTION),
    "units, heads": (lambda: Parts(units_first, **projections()), f(E) * ATTENTION),
    "split": (lambda: Parts(in_split, **qkv()), f(E) * ATTENTION),
    "grouped queries": (
        lambda: Parts(grouped_queries(lambda z: z.repeat_interleave(3, dim=1)), **gqa()), f(E) * GROUPED,
    ),
    "grouped queries, expanded": (
        lambda: Parts(grouped_queries(lambda z: z[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2)), **gqa()),
        f(E) * GROUPED,
    ),
    "grouped queries, enable_gqa": (
        lambda: Parts(
            lambda m, x: x + m.o(joined(F.scaled_dot_product_attention(
                heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2), enable_gqa=True))),
            **gqa(),
        ),
        f(E) * GROUPED,
    ),
    "one key for all heads": (
        lambda: Parts(
            lambda m, x: x + m.o(joined(attend(heads(m.q(x), 6), heads(m.k(x), 1), heads(m.v(x), 1)))),
            q=nn.Linear(E, 12), k=nn.Linear(E, 2), v=nn.Linear(E, 2), o=nn.Linear(12, E),
        ),
        f(E) * f(6) * f(2) ** 2,
    ),
    "rotary": (lambda: Parts(rotary, **projections()), f(E) * f(H) * f(D) ** H),
    "queries and keys normed": (
        lambda: Parts(normed, **projections(), norm_q=nn.RMSNorm(D), norm_k=nn.RMSNorm(D)), f(E) * f(H) * f(D) * f(D) ** H,  # noqa: E501
    ),
    "a bias for each head": (
        lambda: Parts(biased, **projections(), bias=nn.Parameter(torch.zeros(H, 9, 9))), f(E) * ATTENTION,
    ),
    "a class token and positions": (
        lambda: Parts(
            lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), x], 1) + m.places,
            token=nn.Parameter(torch.zeros(1, 1, E)), places=nn.Parameter(torch.zeros(1, 7, E)),
        ),
        f(E),
    ),
    "tokens are mixed": (
        lambda: Parts(lambda m, x: x + m.b(F.gelu(m.a(x.mT))).mT, a=nn.Linear(6, 8), b=nn.Linear(8, 6)), f(E) * f(8),
    ),
    "a gate": (
        lambda: Parts(lambda m, x: m.o(F.silu(m.a(x)) * m.b(x)), a=nn.Linear(E, 9), b=nn.Linear(E, 9), o=nn.Linear(9, E)),  # noqa: E501
        f(E) ** 2 * f(9),
    ),
    "a fused gate": (
        lambda: Parts(lambda m, x: m.o(F.glu(m.a(x))), a=nn.Linear(E, 18), o=nn.Linear(9, E)), f(E) ** 2 * f(9),
    ),
    "LSTM": (lambda: Parts(lambda m, x: m.o(m.r(x)[0]), r=nn.LSTM(E, 5, batch_first=True), o=nn.Linear(5, E)), f(E) ** 2 * f(5)),  # noqa: E501
    "two ways, two layers": (
        lambda: Parts(lambda m, x: m.r(x)[0], r=nn.LSTM(E, 6, 2, batch_first=True, bidirectional=True)), f(E) * f(6) ** 4,  # noqa: E501
    ),
    "GRU": (lambda: Parts(lambda m, x: m.o(m.r(x)[0]), r=nn.GRU(E, 5), o=nn.Linear(5, E)), f(E) ** 2 * f(5)),
    "RNN": (lambda: Parts(lambda m, x: m.o(m.r(x)[0][:, -1:]), r=nn.RNN(E, 5), o=nn.Linear(5, E)), f(E) ** 2 * f(5)),
    "both halves": (lambda: Parts(lambda m, x: torch.cat(x.chunk(2, -1)[::-1], -1)), f(E)),
    "halves that differ": (lambda: Parts(lambda m, x: torch.cat([x[..., :6].tanh(), x[..., 6:]], -1)), f(6) ** 2),
    "seen and put back": (lambda: Parts(lambda m, x: x.view(*x.shape[:2], 3, 4).tanh().flatten(2)), f(E)),
    "softmax": (lambda: Parts(lambda m, x: x.softmax(-1) + x.log_softmax(-1)), f(E)),
    "softmax in blocks": (lambda: Parts(lambda m, x: x.unflatten(-1, (3, 4)).softmax(-1).flatten(2)), f(3) * f(4) ** 3),
    "softmax across blocks": (lambda: Parts(lambda m, x: x.unflatten(-1, (3, 4)).softmax(-2).flatten(2)), f(4) * f(3) ** 4),  # noqa: E501
    "weights of a given norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(E, 9)), f(E) * f(9),
    ),
    "in smaller steps": (lambda: Parts(lambda m, x: torch.addcmul(x, x, x) + F.normalize(x, dim=-1)), f(E)),
    "in steps that PyTorch knows": (lambda: Parts(lambda m, x: x + x.renorm(2, 0, 1.0)), f(E)),
    "a decoder": (
        lambda: Parts(
            lambda m, x: x + m.d(x, x.relu()), d=nn.TransformerDecoderLayer(E, H, HIDDEN, batch_first=True)
        ),
        f(E) * ATTENTION**2 * f(HIDDEN),
    ),
    "experts": (
        lambda: Parts(
            lambda m, x: x + sum(s.unsqueeze(-1) * e(x) for s, e in zip(m.g(x).softmax(-1).unbind(-1), m.e, strict=True)),  # noqa: E501
            g=nn.Linear(E, 3), e=nn.ModuleList([nn.Sequential(nn.Linear(E, 5), nn.ReLU(), nn.Linear(5, E)) for _ in range(3)]),  # noqa: E501
        ),
        f(E) * f(5) ** 3,
    ),
    "units picked alone": (lambda: Parts(lambda m, x: x[..., :1] * x + x[..., 1].unsqueeze(-1) / 2), f(E - 2)),
    "a running sum": (lambda: Parts(lambda m, x: x.cumsum(1)), f(E)),
    "a running sum of units": (lambda: Parts(lambda m, x: x.cumsum(-1)), 1),
    "shifted": (lambda: Parts(lambda m, x: x + x.roll(1, -1)), 1),
    "mirrored": (lambda: Parts(lambda m, x: x + x.flip(-1)), 1),
    "the largest token": (lambda: Parts(lambda m, x: x.amax(1, keepdim=True) - x.max(1, keepdim=True).values / 2), f(E)),  # noqa: E501
    "in place": (lambda: Parts(lambda m, x: x.add_(m.o(x)).mul_(0.5).relu_(), o=nn.Linear(E, E)), f(E)),
    "a stack": (lambda: Parts(lambda m, x: torch.stack([x, x.tanh()]).sum(0)), f(E)),
    "bilinear": (lambda: Parts(lambda m, x: m.b(x, m.l(x)), b=nn.Bilinear(E, 7, E), l=nn.Linear(E, 7)), f(E) ** 2 * f(7)),  # noqa: E501
    "distances": (
        lambda: Parts(lambda m, x: x + m.o(torch.cdist(m.a(x), m.b(x))), a=nn.Linear(E, 7), b=nn.Linear(E, 7), o=nn.Linear(6, E)),  # noqa: E501
        f(E) * f(7),
    ),
    "distances to parameters": (
        lambda: Parts(lambda m, x: m.o(torch.cdist(x, m.c, p=1)), c=nn.Parameter(torch.zeros(7, E)), o=nn.Linear(7, E)),
        f(E) ** 2 * f(7),
    ),
    "the nearest code": (
        lambda: Parts(codebook, codes=nn.Parameter(torch.zeros(7, E)), o=nn.Linear(7, E)), f(E) ** 2,
    ),
    "rotary by complex numbers": (
        lambda: Parts(rotary_by_complex_numbers, **projections()), f(E) * f(H) * f(D) ** H,
    ),
    "complex": (lambda: Parts(lambda m, x: (torch.complex(x, x.tanh()).conj() * torch.polar(x, x)).imag), f(E)),
    "transformed tokens": (lambda: Parts(lambda m, x: torch.fft.ifft(torch.fft.fft(x, dim=1) ** 2, dim=1).real), f(E)),
    "transformed units": (lambda: Parts(lambda m, x: torch.fft.fft(x, dim=-1).real), 1),
    "written in turn": (lambda: Parts(in_turn, i=nn.Linear(E, 5), h=nn.Linear(5, 5), o=nn.Linear(5, E)), f(E) ** 2 * f(5)),  # noqa: E501
    "heads in turn": (lambda: Parts(heads_in_turn, **projections()), f(E) * f(D) ** (2 * H)),
    "interleaved": (
        lambda: Parts(interleaved, a=nn.Linear(E, E), b=nn.Linear(E, E), o=nn.Linear(2 * E, E)), f(E) ** 4,
    ),
    "written into a window": (lambda: Parts(windows_of_zeros, o=nn.Linear(2 * E, E)), f(E) ** 3),
    "written across": (lambda: Parts(across), f(E)),
    "one token written": (lambda: Parts(one_token, o=nn.Linear(E, E)), f(E)),
    "added up": (lambda: Parts(added_up, o=nn.Linear(E, E)), f(E)),
    "the best tokens of each unit": (lambda: Parts(lambda m, x: x.topk(3, 1).values), f(E)),
    "the best units": (lambda: Parts(lambda m, x: m.o(x * (x >= x.topk(3, -1).values[..., -1:])), o=nn.Linear(E, E)), f(E) ** 2),  # noqa: E501
    "tokens in order": (lambda: Parts(lambda m, x: x.sort(1, descending=True).values - x.median(1, keepdim=True).values), f(E)),  # noqa: E501
    "units in order": (lambda: Parts(lambda m, x: x.sort(-1).values), f(E)),
    "places of units": (lambda: Parts(lambda m, x: x.gather(-1, x.argsort(-1))), 1),
    "the largest of all": (lambda: Parts(lambda m, x: x / x.max()), f(E)),
    "the best experts": (lambda: Parts(routed, g=nn.Linear(E, 3), e=nn.ModuleList([nn.Linear(E, E) for _ in range(3)])), f(E)),  # noqa: E501
    "the best tokens": (lambda: Parts(best_tokens, score=nn.Linear(E, 1)), f(E)),
    "sums by group": (
        lambda: Parts(lambda m, x: torch.zeros(len(x), 3, E).index_add(1, torch.tensor([0, 1, 2, 0, 1, 2]), x)), f(E),
    ),
    "dropout left on": (
        lambda: Parts(lambda m, x: F.dropout(x, 0.5) + F.alpha_dropout(x, 0.5, training=True).tanh()), f(E),
    ),
    "dropout in attention": (
        lambda: Parts(
            lambda m, x: x + m.o(joined(F.scaled_dot_product_attention(
                heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), dropout_p=0.5))),
            **projections(),
        ),
        f(E) * ATTENTION,
    ),
    "a running sum within blocks": (lambda: Parts(lambda m, x: x.unflatten(-1, (3, 4)).cumsum(-1).flatten(2)), f(3)),
    "a running sum across blocks": (lambda: Parts(lambda m, x: x.unflatten(-1, (3, 4)).cumsum(-2).flatten(2)), f(4)),
    "channels of a decoder": (
        lambda: Parts(decoded, l=nn.Linear(E, 128), up=nn.ConvTranspose2d(8, E, 2, 2)), f(E) * f(8),
    ),
    "float32 in between": (lambda: Parts(lambda m, x: x.float().softmax(-1).type_as(x)), f(E)),
}  # fmt: skip


class Image(nn.Module):
    def __init__(self, block, width=8):
        super().__init__()
        self.first, self.block, self.head = nn.Conv2d(1, 8, 3, padding=1), block, nn.LazyLinear(2)

    def forward(self, x):
        return self.head(self.block(self.first(x)).flatten(1))


def dense_block(m, x):
    for layer in m.layers:
        x = torch.cat([x, layer(x).relu()], 1)
    return x


def shuffled(m, x):
    a, b = x.chunk(2, 1)
    x = torch.cat([a, m.conv(b)], 1)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu()


def squeezed(m, x):
    return x * m.up(m.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


def patches(m, x):
    return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


def windows(m, x):
    n, c, h, w = x.shape
    x = x.roll((1, 1), (2, 3)).view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = m.norm(x)
    return x.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def rows_dropped(x):
    return data.torchvision().ops.stochastic_depth(x, 0.5, "row", training=False)


def sampled(m, x):
    """A spatial transformer: places to look at, that the net itself names."""
    grid = F.affine_grid(m.l(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def unpooled(m, x):
    return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)


CONV = lambda i, o, k=3, **settings: nn.Conv2d(i, o, k, padding=k // 2, **settings)  # noqa: E731
IMAGES = {  # a block on 8 channels of 8 × 8, and how many orders the whole net has
    "GroupNorm": (lambda: nn.GroupNorm(4, 8), f(4) * f(2) ** 4),
    "two GroupNorms, nested": (lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)), f(2) * f(2) ** 2 * f(2) ** 4),  # noqa: E501
    "InstanceNorm": (lambda: nn.InstanceNorm2d(8, affine=True), f(8)),
    "dense": (
        lambda: Parts(dense_block, layers=nn.ModuleList([CONV(8, 3), CONV(11, 3), CONV(14, 4)])), f(8) * f(3) ** 2 * f(4),  # noqa: E501
    ),
    "shuffled": (lambda: Parts(shuffled, conv=CONV(4, 4)), f(4) * f(4) * f(4)),
    "squeezed": (lambda: Parts(squeezed, down=CONV(8, 3, 1), up=CONV(3, 8, 1)), f(8) * f(3)),
    "depthwise": (lambda: nn.Sequential(CONV(8, 8, groups=8), nn.ReLU6(), CONV(8, 5, 1)), f(8) * f(5)),
    "wider depthwise": (lambda: CONV(8, 16, groups=8), f(8) * f(2) ** 8),
    "grouped": (lambda: CONV(8, 6, groups=2), f(2) * f(4) * f(3) ** 2),
    "transposed": (lambda: nn.ConvTranspose2d(8, 5, 2, 2), f(8) * f(5)),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), f(8)),
    "patches": (lambda: nn.Sequential(Parts(patches), nn.GroupNorm(1, 32), nn.Conv2d(32, 5, 1)), f(8) * f(5)),
    "windows": (lambda: Parts(windows, norm=nn.LayerNorm(8)), f(8)),
    "upsampled": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), f(8)),
    "upsampled by cubes": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), f(8)),
    "sampled": (lambda: Parts(sampled, l=nn.Linear(8, 6)), f(8)),
    "windows as columns": (
        lambda: Parts(lambda m, x: m.o(F.unfold(x, 3, padding=1).mT).mT, o=nn.Linear(72, 5)), f(8) * f(5),
    ),
    "windows as columns and back": (lambda: Parts(lambda m, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)), f(8)),  # noqa: E501
    "columns of a layer": (
        lambda: Parts(lambda m, x: F.fold(m.l(x.mean((2, 3))).view(-1, 20, 16), (8, 8), 2, stride=2), l=nn.Linear(8, 320)),  # noqa: E501
        f(8) * f(5),
    ),
    "unpooled": (lambda: Parts(unpooled), f(8)),
    "padded in a circle": (lambda: Parts(lambda m, x: F.pad(x, (1, 1, 2, 0), mode="circular")), f(8)),
    "frequencies": (
        lambda: Parts(
            lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(m.w), s=(8, 8)),
            w=nn.Parameter(torch.zeros(8, 8, 5, 2)),
        ),
        f(8),
    ),
    "pooled to places": (lambda: nn.AdaptiveAvgPool2d((2, 3)), f(8)),
    "stochastic depth": (lambda: Parts(lambda m, x: x + rows_dropped(x.relu())), f(8)),
    "channels last": (lambda: Parts(lambda m, x: m.norm(x.permute(0, 2, 3, 1)), norm=nn.LayerNorm(8)), f(8)),
    "padded": (lambda: Parts(lambda m, x: F.pad(x, (1, 1, 0, 2))), f(8)),
    "channels padded": (lambda: Parts(lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 4))), f(8)),
    "a scale for each channel": (lambda: Parts(lambda m, x: x * m.scale, scale=nn.Parameter(torch.ones(8, 1, 1))), f(8)),  # noqa: E501
}  # fmt: skip


class Language(nn.Module):
    """Tokens and positions, one block, and the table of tokens again as the last layer."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, E), nn.Embedding(6, E)
        self.block, self.norm, self.head = encoder(norm_first=True), nn.LayerNorm(E), nn.Linear(E, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.norm(self.block(x, src_mask=mask, is_causal=True)))


def token_net(name):
    width = 9 if name == "weights of a given norm" else E
    return Net(TOKENS[name][0](), width=width), torch.zeros(2, 6, 5), TOKENS[name][1]


def image_net(name):
    net, x = Image(IMAGES[name][0]()), torch.zeros(2, 1, 8, 8)
    net(x)
    return net, x, IMAGES[name][1]


def language_net(_):
    return Language(), torch.arange(12).view(2, 6) % 11, ENCODER


CASES = [*((token_net, name) for name in TOKENS), *((image_net, name) for name in IMAGES), (language_net, "language")]
every_net = pytest.mark.parametrize(("make", "name"), CASES)


def elements(spec, params):
    """How many orders a spec allows."""
    count = 1
    for label, size in sizes(spec, params).items():
        groups = spec.groups.get(label, 1)
        count *= f(size // groups) ** groups * (1 if label in spec.outer else f(groups))
    return count


def model_of(net, dtype=torch.float64):
    tensors = {**dict(net.named_parameters()), **{n: b for n, b in net.named_buffers() if b.is_floating_point()}}
    generator = stream(0, "model")
    return {
        name: (torch.rand(tensor.shape, generator=generator, dtype=dtype) - (0.5 if tensor.ndim > 1 else -0.5))
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def traced(request):
    """A net, its spec, an example, and how many orders it has; traced once for all tests of it."""
    make, name = request.param
    net, x, expected = make(name)
    return net, permutation_spec(net, x), x, expected


def test_every_order_is_found_and_no_other(traced):
    net, spec, _, expected = traced
    assert elements(spec, model_of(net)) == expected


def test_orders_of_a_net_form_a_group_and_keep_its_answers(traced):
    net, spec, x, _ = traced
    params = model_of(net)
    assert list(params) == [key for key in params if key in spec.axes]
    align.verify(net, spec, x)
    p, q, r = (random_permutations(spec, params, stream(0, k)) for k in range(3))
    still = identity(spec, params)
    assert equal(permute(spec, still, params), params)
    assert equal(compose(inverse(p), p), still)
    assert equal(compose(compose(p, q), r), compose(p, compose(q, r)))
    assert equal(permute(spec, compose(p, q), params), permute(spec, p, permute(spec, q, params)))
    assert equal(permute(spec, inverse(p), permute(spec, p, params)), params)
