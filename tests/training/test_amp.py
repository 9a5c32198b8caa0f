import pytest
import torch
from torch import nn

from kit import InputError
from kit.training import amp


def train_net(opt_level, steps=60, batches=None):
    """The loss of a small net fitted to y = sin(x0) + x1, after each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    net, optimizer = amp.initialize(net, torch.optim.Adam(net.parameters(), 1e-2), opt_level)
    inputs = torch.rand(256, 2) * 4 - 2
    targets = inputs[:, :1].sin() + inputs[:, 1:]
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(net(inputs), targets)
        optimizer.zero_grad()
        with amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, net, optimizer


def test_o1_and_o2_train_to_within_a_few_per_cent_of_float32():
    reference = sum(train_net("O0")[0][:40])
    for opt_level in ("O1", "O2"):
        losses, _, _ = train_net(opt_level)
        assert losses[-1] < losses[0] / 10
        assert sum(losses[:40]) == pytest.approx(reference, rel=0.05)


def test_o0_equals_plain_training_exactly():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    inputs = torch.rand(256, 2) * 4 - 2
    targets = inputs[:, :1].sin() + inputs[:, 1:]
    for _ in range(60):
        loss = nn.functional.mse_loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert train_net("O0")[0][-1] == loss.item()


def test_opt_levels_hold_their_weights_in_their_types():
    types = {
        level: [parameter.dtype for parameter in train_net(level, steps=1)[1].parameters()]
        for level in amp.OPT_LEVELS
    }
    half, single = torch.bfloat16, torch.float32
    assert types["O0"] == types["O1"] == [single] * 6
    assert types["O2"] == [half, half, single, single, half, half]
    assert types["O3"] == [half] * 6


@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_an_overflow_skips_the_step_and_halves_the_scale(opt_level):
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    net, optimizer = amp.initialize(net, torch.optim.SGD(net.parameters(), 0.1), opt_level)
    before = net.weight.detach().clone()
    with amp.scale_loss(net(torch.ones(1, 3)).sum() * float("inf"), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    assert torch.equal(net.weight, before)
    assert optimizer.amp.scale == amp.INITIAL_SCALE / 2
    assert optimizer.amp.skipped == 1
    optimizer.zero_grad()
    with amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    assert torch.allclose(net.weight.float(), before.float() - 0.1, atol=4e-3)
    assert optimizer.amp.skipped == 1


@pytest.mark.parametrize("fused", [True, False])
def test_an_infinite_loss_with_finite_gradients_skips_the_step_too(fused):
    net = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(net.parameters(), 0.1, fused=fused)
    net, optimizer = amp.initialize(net, optimizer, "O1")
    before = net.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        with amp.scale_loss(net(torch.ones(1, 3)).sum() + torch.inf, optimizer) as scaled:
            scaled.backward()
        optimizer.step()
    assert torch.equal(net.weight, before)
    assert optimizer.amp.scale == amp.INITIAL_SCALE / 8
    assert optimizer.amp.skipped == optimizer.amp.skipped_in_a_row == 3
    optimizer.zero_grad()
    with amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    torch.testing.assert_close(net.weight, before - 0.1)  # Adam's first step is the rate itself
    assert (optimizer.amp.skipped, optimizer.amp.skipped_in_a_row) == (3, 0)


@pytest.mark.parametrize("opt_level", amp.OPT_LEVELS)
def test_gradients_add_up_while_their_unscaling_is_delayed(opt_level):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    net, optimizer = amp.initialize(net, torch.optim.SGD(net.parameters(), 0.5), opt_level)
    before = net.weight.detach().float().clone()
    for values in ([1.0, 0.0, 2.0], [0.0, 4.0, 1.0], [2.0, 2.0, 2.0]):
        with amp.scale_loss(net(torch.tensor([values])).sum(), optimizer, True) as scaled:
            scaled.backward()
    amp.find_scaling(optimizer).unscale_gradients()
    optimizer.step()
    moved = before - net.weight.detach().float()
    torch.testing.assert_close(moved, torch.tensor([[1.5, 3, 2.5]] * 2), atol=0.02, rtol=0)


def test_a_gpu_without_bfloat16_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    device = torch.device("cuda", 0)
    assert amp.choose_half(device) == amp.choose_half(device, "float16") == torch.float16
    with pytest.raises(InputError, match="precision bfloat16: the Tesla T4 has none; choose float"):
        amp.choose_half(device, "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert amp.choose_half(device, "bfloat16") == torch.bfloat16
    assert amp.choose_half(torch.device("cpu"), "float16") == torch.bfloat16


def test_the_scale_doubles_after_the_growth_interval(monkeypatch):
    monkeypatch.setattr(amp, "GROWTH_INTERVAL", 3)
    _, _, optimizer = train_net("O1", steps=3)
    assert optimizer.amp.scale == amp.INITIAL_SCALE * 2


def test_master_weights_keep_an_update_too_small_for_half_precision():
    def descend(opt_level):
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        net, optimizer = amp.initialize(net, torch.optim.SGD(net.parameters(), 1e-4), opt_level)
        for _ in range(100):  # a hundred updates of 1e-4; bfloat16 near 1 steps by 0.0039
            optimizer.zero_grad()
            with amp.scale_loss(net(torch.ones(1, 1)).sum(), optimizer) as scaled:
                scaled.backward()
            optimizer.step()
        return net.weight.item()

    assert descend("O3") == 1.0
    assert descend("O2") == pytest.approx(0.99, abs=0.002)


@pytest.mark.parametrize("opt_level", amp.OPT_LEVELS)
def test_the_state_can_be_saved_and_restored(opt_level):
    *_, optimizer = train_net(opt_level, steps=5)
    if opt_level in ("O1", "O2"):
        optimizer.amp.scaler.update(128.0)
    optimizer.amp.skipped = 4
    state = amp.state_dict(optimizer)
    _, _, restored = train_net(opt_level, steps=1)
    amp.load_state_dict(restored, state)
    assert restored.amp.scale == optimizer.amp.scale
    assert restored.amp.skipped == 4
    assert amp.state_dict(restored) == state


def test_an_unknown_opt_level_is_refused():
    with pytest.raises(ValueError, match="'O9' is none of O0, O1, O2, O3"):
        amp.initialize(nn.Linear(1, 1), None, "O9")


def test_inference_needs_no_optimizer():
    net, nothing = amp.initialize(nn.Sequential(nn.Linear(4, 2)), None, "O1")
    assert nothing is None
    assert note_output_type(net[0], net) == torch.bfloat16


@pytest.mark.parametrize("opt_level", ["O1", "O3"])
def test_the_half_precision_type_can_be_chosen(opt_level):
    net, _ = amp.initialize(nn.Sequential(nn.Linear(4, 2)), None, opt_level, torch.float16)
    assert note_output_type(net[0], net) == torch.float16


def note_output_type(layer, net):
    """The type of what `layer` gives inside of a forward pass of `net`."""
    types = []
    layer.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    net(torch.ones(1, 4))
    return types[0]


@pytest.mark.parametrize("opt_level", amp.OPT_LEVELS)
def test_outputs_are_float32_for_a_loss_outside_autocast(opt_level):
    net, _ = amp.initialize(nn.Linear(4, 2), None, opt_level)
    outputs = net(torch.ones(3, 4))
    assert outputs.dtype == torch.float32
    nn.functional.binary_cross_entropy_with_logits(outputs, torch.ones(3, 2)).backward()
    nn.functional.mse_loss(net(torch.ones(3, 4)), torch.ones(3, 2)).backward()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("opt_level", amp.OPT_LEVELS)
def test_the_step_stays_the_optimizers_own(opt_level):
    *_, optimizer = train_net(opt_level, steps=2)
    assert "step" not in vars(optimizer)
    assert optimizer.step.__func__ is torch.optim.Adam.step


def test_a_second_backward_pass_before_the_step_is_refused():
    """Its gradients would be added, scaled, to those that are unscaled already."""
    net = nn.Linear(3, 1)
    net, optimizer = amp.initialize(net, torch.optim.SGD(net.parameters(), 0.1), "O1")
    with amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled:
        scaled.backward()
    with (
        pytest.raises(RuntimeError, match="already been called"),
        amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled,
    ):
        scaled.backward()


def test_a_learning_rate_scheduler_can_wrap_the_optimizer():
    net = nn.Linear(3, 1)
    net, optimizer = amp.initialize(net, torch.optim.SGD(net.parameters(), 0.1), "O1")
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    with amp.scale_loss(net(torch.ones(1, 3)).sum(), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.095)]


@pytest.mark.parametrize(
    ("amx", "avx", "level"), [(True, True, "O1"), (False, True, "O1"), (False, False, "O0")]
)
def test_convolutions_stay_in_float32_on_a_cpu_without_bfloat16(monkeypatch, amx, avx, level):
    found = {"amx_bf16": amx, "avx512_bf16": avx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert amp.choose_convolution_level(torch.device("cpu"), "O1") == level
    assert amp.choose_convolution_level(torch.device("cpu"), "O0") == "O0"
    assert amp.choose_convolution_level(torch.device("cuda"), "O1") == "O1"


def test_the_usual_import_finds_it():
    import kit.amp
    from kit.amp import initialize, scale_loss

    assert (initialize, scale_loss) == (amp.initialize, amp.scale_loss)
    assert kit.amp.initialize is amp.initialize
