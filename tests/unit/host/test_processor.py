"""What a machine's processor is called, and what it can do."""

import pytest

from owl3_jax.host import processor

X86 = "processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: other\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(("info", "name", "found"), [(X86, "Fast 9000", ("fpu", "avx2")), (ARM, None, ("fp", "asimd"))])
def test_the_first_core_stands_for_all(info, name, found, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(info)
    assert processor.instructions() == found
    assert processor.processor_name() == name if name else processor.processor_name()


def test_where_the_system_says_nothing_there_is_a_name_still(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "absent")
    assert processor.instructions() == () and processor.processor_name()
