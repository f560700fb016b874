"""A model that is spread over eight simulated devices draws, sees and answers as on one."""

import nexus_files
import pytest
import simulated
import use_worker


@pytest.mark.slow
def test_eight_devices_use_a_model_as_one_does(tmp_path):
  home = str(nexus_files.copy(tmp_path / "home"))
  found = simulated.finish(simulated.start(use_worker.__file__, 8, home))
  assert found.pop("devices") == 8
  for name, ways in (("blip3o", 8), ("nexus_gen", 4)):
    each = found[name]
    assert 0 <= each["vectors"] < 1e-5, name
    assert 0 <= each["features"] < 1e-5, name
    # Pictures are rounded: a value between two levels may fall to either side.
    assert each["levels"] <= 1, name
    assert each["share"] < 1e-3, name
    assert each["answers"][0] == each["answers"][1], name
    (fullest, whole), (spread, same) = each["bytes"]
    assert fullest == whole == same
    assert spread < 1.3 * whole / ways, (name, spread, whole)
