"""A process model of an engine with variable valve timing, trained by AdaptAhead.

Optimiser, schedule and clipping serve models without a vocabulary too. Here a small network learns
volumetric efficiency and burn duration from speed, load, valve timing and residual gas, on data of
a small thermodynamic simulation, and is compared with what calibrators use: a quadratic response
surface, fitted by least squares to the same points.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thinwire import AdaptAhead
from thinwire.optim.clipping import clip_gradients, gradients_of
from thinwire.optim.schedules import cosine, warmup

STEPS, BATCH = 1500, 128
NAMES = ("volumetric efficiency", "burn duration [deg]")


def operating_points(count: int, generator: torch.Generator) -> Tensor:
    """Speed [1/min], manifold pressure [bar], intake and exhaust cam phase [deg of crank]."""
    low = torch.tensor([800.0, 0.30, 0.0, 0.0])
    high = torch.tensor([6000.0, 1.00, 50.0, 50.0])
    return low + (high - low) * torch.rand(count, 4, generator=generator)


def simulate(points: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (the points and the residual gas fraction) and what is to be learned."""
    speed, manifold, advance, retard = points.T
    exhaust = 1.02 + 0.12 * (speed / 6000) ** 2  # [bar], the back pressure of the exhaust
    # Residual gas: what fills the clearance volume, and what flows back while both valves are open.
    clearance = 1 / 10.5  # compression ratio 10.5
    overlap = (advance + retard - 20.0).clamp(min=0.0)  # [deg]
    back_flow = 0.9 * overlap * (exhaust - manifold).clamp(min=0.0).sqrt() / speed
    hot = 300.0 / 900.0  # density of exhaust gas over that of fresh gas
    trapped = hot * (clearance * exhaust / manifold + 3.0 * back_flow)
    # Filling: the intake closes late at small advance, which pushes charge back at low speed and
    # gains by the inertia of the gas at high speed; the valve chokes the flow near its sonic limit.
    closing = 60.0 - advance  # [deg after bottom dead centre]
    best = 15.0 + 45.0 * speed / 6000
    inertia = 1.0 - ((closing - best) / 75.0) ** 2
    mach = 0.55 * speed / 6000  # mean Mach index of the inlet
    choke = 1.0 / (1.0 + (mach / 0.5) ** 6)
    early_exhaust = 1.0 - 0.10 * (retard / 50.0 - 0.5) ** 2
    residual = trapped / (trapped + inertia * choke)
    filling = manifold * inertia * choke * early_exhaust * (1.0 - residual)
    # Burn duration: laminar flame speed falls with residual gas (Metghalchi & Keck 1982: 1 - 2.06
    # X^0.77) and with pressure; turbulence grows with the engine's speed.
    dilution = (1.0 - 2.06 * residual**0.77).clamp(min=0.08)
    flame = dilution * manifold**-0.16 * (0.4 + speed / 2500) / (0.4 + 1.0)
    duration = 6.0 + 18.0 * (speed / 2500) / flame / (0.35 + 0.65 * speed / 2500)
    return torch.column_stack([points, residual]), torch.column_stack([filling, duration])


def quadratic(x_NF: Tensor) -> Tensor:
    """One, every feature, and every product of two."""
    rows, columns = torch.triu_indices(x_NF.shape[1], x_NF.shape[1])
    return torch.column_stack([torch.ones(len(x_NF)), x_NF, x_NF[:, rows] * x_NF[:, columns]])


def main() -> None:
    """Fit both models, and print the error on operating points that neither has seen."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    x, y = simulate(operating_points(2000, generator))
    y = y * (1 + 0.005 * torch.randn(y.shape, generator=generator))  # noise of a test bench: 0.5%
    held_x, held_y = simulate(operating_points(1000, generator))
    mean_x, scale_x, mean_y, scale_y = x.mean(0), x.std(0), y.mean(0), y.std(0)
    x, held_x, y = (x - mean_x) / scale_x, (held_x - mean_x) / scale_x, (y - mean_y) / scale_y

    surface = torch.linalg.lstsq(quadratic(x), y).solution
    network = nn.Sequential(
        nn.Linear(x.shape[1], 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2)
    )
    optimizer = AdaptAhead(network.parameters(), lr=1e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * warmup(step, 50) * cosine(step / STEPS, 0.01)
        batch = torch.randint(len(x), (BATCH,), generator=generator)
        loss = nn.functional.mse_loss(network(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(gradients_of(network.parameters()), max_norm=1.0)
        optimizer.step()

    for name, found in (
        ("quadratic surface", quadratic(held_x) @ surface),
        ("network", network(held_x)),
    ):
        error = (found.detach() * scale_y + mean_y - held_y).square().mean(0).sqrt().tolist()
        print(
            f"{name}: " + ", ".join(f"{n} error {e:.5f}" for n, e in zip(NAMES, error, strict=True))
        )


if __name__ == "__main__":
    main()
