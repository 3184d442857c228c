"""A raster sampler of the same shapes in eager PyTorch, for comparison: python -m benchmarks.torch_reference [--json]

LlamaGen's architecture with a preallocated key-value cache of which each step reads the filled part, guidance over a
doubled batch, float32, random weights. It needs torch alone, so that it can run in an environment of its own.
"""

import argparse
import dataclasses
import json
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    layers: int = 4
    width: int = 256
    side: int = 16
    vocab: int = 4096
    batch: int = 1
    guidance: float = 2.0


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = -(-(8 * width // 3) // 256) * 256
        self.heads = width // 64
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cache: Tensor, position: int, rotary: Tensor) -> Tensor:
        """One position x [b d]; cache [2 b h n e] of this layer is written in place."""
        q, k, v = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, 64).unbind(1)
        cache[0, :, :, position], cache[1, :, :, position] = _rotate(k, rotary), v
        keys, values = cache[:, :, :, : position + 1]
        mixed = F.scaled_dot_product_attention(_rotate(q, rotary)[:, :, None], keys, values)
        x = x + self.out(mixed.reshape(x.shape))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        self.classes = nn.Embedding(NUM_CLASSES + 1, case.width)
        self.tokens = nn.Embedding(case.vocab, case.width)
        self.blocks = nn.ModuleList(Block(case.width) for _ in range(case.layers))
        self.norm, self.head = nn.RMSNorm(case.width), nn.Linear(case.width, case.vocab, bias=False)


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Pairs of channels of x [b h e] turned by the complex numbers rotary [e / 2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotary).flatten(-2)


def rotary_table(side: int) -> Tensor:
    """Complex [1 + side^2, 32]: the condition, then the tokens with 16 frequencies for each of their coordinates."""
    frequencies = 10_000.0 ** -(torch.arange(16) / 16)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([c.reshape(-1, 1) * frequencies for c in (rows, columns)], -1)
    return torch.cat([torch.zeros(1, 32, dtype=torch.complex64), torch.polar(torch.ones_like(angles), angles)])


@torch.inference_mode()
def sample(net: Transformer, case: Case) -> Tensor:
    """Token ids [b n]."""
    labels = torch.arange(case.batch) % NUM_CLASSES
    x = net.classes(torch.cat([labels, torch.full_like(labels, NUM_CLASSES)]))
    count, rotary, drawn = case.side**2, rotary_table(case.side), []
    caches = torch.zeros(case.layers, 2, 2 * case.batch, case.width // 64, count, 64)
    for position in range(count):
        for block, cache in zip(net.blocks, caches):
            x = block(x, cache, position, rotary[position])
        cond, null = net.head(net.norm(x)).chunk(2)
        logits = null + case.guidance * (cond - null)
        drawn.append(torch.multinomial(logits.softmax(-1), 1)[:, 0])
        x = net.tokens(torch.cat([drawn[-1], drawn[-1]]))
    return torch.stack(drawn, 1)


def run(case: Case, repeat: int) -> dict[str, object]:
    """One row of results; the first call is not counted."""
    net = Transformer(case).eval()
    walls, cpus = [], []
    for _ in range(repeat + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        sample(net, case)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        **dataclasses.asdict(case),
        "wall_s": min(walls[1:]),
        "cpu_s": min(cpus[1:]),
        "parameters": sum(p.numel() for p in net.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Case):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=f"default {field.default}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="counted calls")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row = run(Case(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Case)}), args.repeat)
    print(json.dumps(row) if args.json else "  ".join(f"{k}={v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
