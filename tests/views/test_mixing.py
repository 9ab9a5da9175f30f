import pytest
import torch

from nnunetv2_crossmatch.views import mixing
from nnunetv2_crossmatch.views.mixing import Partner, draw_boxes, paste

CPU = torch.device("cpu")


@pytest.mark.parametrize(("spatial", "p"), [((40, 48), 0.5), ((24, 32, 40), 0.8)], ids=["2d", "3d"])
def test_boxes_are_solid_have_the_stated_volume_and_come_as_often_as_stated(spatial, p):
    torch.manual_seed(0)
    boxes = draw_boxes(2000, spatial, p, CPU)
    assert boxes.shape == (2000, 1, *spatial) and boxes.dtype == torch.bool
    drawn = [box[0] for box in boxes if box.any()]
    assert len(drawn) / 2000 == pytest.approx(p, abs=0.04)
    volumes = []
    for box in drawn:
        index = box.nonzero()
        extent = index.max(0).values - index.min(0).values + 1
        assert extent.prod() == len(index), "not a box"
        volumes.append(len(index) / box.numel())
    assert sum(volumes) / len(volumes) == pytest.approx(sum(mixing.VOLUME) / 2, rel=0.05)
    assert min(volumes) > 0.01 and max(volumes) < 0.45


@pytest.mark.parametrize("spatial", [(64, 64), (8, 64, 64)], ids=["2d", "3d"])
def test_boxes_have_the_stated_aspects(spatial):
    """Of the last two axes, uniform from 0.3 to 3.3."""
    torch.manual_seed(0)
    aspects = []
    for box in draw_boxes(2000, spatial, 1.0, CPU, volumes=(0.02, 0.02))[:, 0]:
        index = box.nonzero()
        extent = index.max(0).values - index.min(0).values + 1
        aspects.append(float(extent[-2] / extent[-1]))
    aspects = torch.tensor(aspects)
    assert aspects.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == pytest.approx(
        [0.3, 1.06, 1.82, 2.58, 3.33], rel=0.15
    )


def test_boxes_reach_every_corner():
    torch.manual_seed(0)
    hit = draw_boxes(3000, (12, 12, 12), 0.5, CPU).any(0)[0]
    assert hit.all()


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_nobody_is_their_own_partner_and_everything_follows_one_partner(batch):
    torch.manual_seed(0)
    partner = Partner()
    images, labels = torch.arange(batch), 10 * torch.arange(batch)
    seen = set()
    for _ in range(40):
        partner.draw(batch)
        mixed = partner.of("image", images)
        assert (mixed != images).all() and sorted(mixed.tolist()) == images.tolist()
        assert torch.equal(partner.of("label", labels), 10 * mixed)
        seen.add(int(mixed[0]))
    assert len(seen) == batch - 1


def test_a_single_sample_is_mixed_with_the_previous_step():
    partner = Partner()
    for step in range(3):
        partner.draw(1)
        image, label = torch.tensor([step]), torch.tensor([10 * step])
        assert partner.of("image", image).item() == max(step - 1, 0)
        assert partner.of("label", label).item() == 10 * max(step - 1, 0)


def test_paste_takes_the_partner_inside_the_box_only():
    torch.manual_seed(0)
    box = draw_boxes(4, (6, 7), 0.5, CPU)
    own, other = torch.zeros(4, 2, 6, 7), torch.ones(4, 2, 6, 7)
    assert torch.equal(paste(box, own, other), box.expand_as(own).float())
