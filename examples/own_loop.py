"""A sampled softmax and row-wise Adagrad in a plain PyTorch loop: nothing else of thinwire.

The text is made up: ten thousand words, each followed by one of two others, so that a good model
is in doubt between two words only, which is a perplexity of 2.
"""

import torch
from torch import nn
from torch.nn import functional as F

from thinwire import RowAdagrad, SampledSoftmax

V, D, B, T = 10_000, 32, 32, 16  # words, width, sequences, tokens a sequence
STEPS, SAMPLES = 200, 200

torch.manual_seed(0)
followers = torch.randint(V // 20, (V, 2))
tokens = torch.randint(V, (B, STEPS * T + 1))
for t in range(1, tokens.shape[1]):
    tokens[:, t] = followers[tokens[:, t - 1], torch.randint(2, (B,))]
counts = torch.bincount(tokens.flatten(), minlength=V)

embedding = nn.Embedding(V, D, sparse=True)
body = nn.GRU(D, D, batch_first=True)
output = nn.Linear(D, V)
rows = RowAdagrad([*embedding.parameters(), *output.parameters()], lr=0.5)
blocks = torch.optim.Adam(body.parameters(), lr=0.01)
criterion = SampledSoftmax(counts, SAMPLES)

state = None
for step in range(STEPS):
    inputs, targets = (tokens[:, step * T + shift :][:, :T] for shift in (0, 1))
    hidden, state = body(embedding(inputs), state)
    hidden, targets, state = hidden.flatten(0, 1), targets.flatten(), state.detach()
    if (step + 1) % 50 == 0:
        exact = F.cross_entropy(output(hidden.detach()), targets).exp()
        print(f"step {step + 1}: perplexity {exact.item():.1f} on text not seen before")
    loss = criterion(hidden, targets, output.weight, output.bias, step) / len(targets)
    loss.backward()  # the gradients of embedding and output are sparse: touched rows only
    rows.step()
    blocks.step()
    rows.zero_grad()
    blocks.zero_grad()
