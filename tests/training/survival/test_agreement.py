"""The agreement of a single process; tests/programs tests several processes."""

import jax
import numpy as np

from effnetv2_jax.training import mesh as placement
from effnetv2_jax.training.survival.agreement import Agreement


def test_who_is_alone_asks_itself_and_sends_nothing():
    mesh = placement.make_mesh(jax.devices()[:2])
    wishes = {}
    agreement = Agreement(lambda: dict(wishes), mesh)
    assert agreement.alone
    batch = placement.shard_batch({"mask": np.ones(4, np.float32)}, mesh)
    assert agreement.attach(batch) is batch
    shapes = placement.abstract(batch)
    assert agreement.attach_shapes(shapes) is shapes
    assert agreement.agreed({}) == {"stop": False, "save": False}
    assert not agreement.given_up()
    wishes["save"] = True
    assert agreement.agreed({}) == {"stop": False, "save": True}
    assert not agreement.given_up()
    wishes["stop"] = True
    assert agreement.agreed({}) == {"stop": True, "save": True}
    assert agreement.given_up()


def test_among_several_the_wish_of_one_is_seen_in_the_sums(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = placement.make_mesh(jax.devices()[:4])
    wishes = {"stop": True}
    agreement = Agreement(lambda: wishes, mesh)
    assert not agreement.alone
    batch = agreement.attach(placement.shard_batch({"mask": np.ones(4, np.float32)}, mesh))
    # A row for each device, of which the step returns the sum.
    np.testing.assert_array_equal(batch["wishes"], [[1, 0]] * 4)
    shapes = agreement.attach_shapes(placement.abstract({"mask": batch["mask"]}))
    assert shapes["wishes"] == placement.abstract(batch)["wishes"]
    assert agreement.agreed({"wishes": np.array([4.0, 0.0])}) == {"stop": True, "save": False}
    assert agreement.agreed({"wishes": np.array([0.0, 1.0])}) == {"stop": False, "save": True}
    # To stop where it is would leave the others waiting.
    assert not agreement.given_up()
