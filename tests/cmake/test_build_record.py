"""The record that a build leaves of itself, as JSON."""

from pathlib import Path

from device_compilers import run


def test_the_record(tmp_path: Path) -> None:
    body = """
mla_record_build(cpu "c++ (GNU 12.2.0)" "baseline;avx2" "" "[]")
mla_json_text([[a "quoted" \\path; and
	more]] sentence)
mla_record_build(rocm "" "" "no [reason" "[${sentence}]")
file(WRITE record.json "${MLA_BUILD_RECORD}")
"""
    ran = run(tmp_path, body)
    assert ran.status == 0, ran.said
    assert ran.record == {
        "cpu": {
            "compiler": "c++ (GNU 12.2.0)",
            "architectures": ["baseline", "avx2"],
            "reason": None,
            "refused": [],
        },
        "rocm": {
            "compiler": None,
            "architectures": [],
            "reason": "no [reason",
            "refused": ['a "quoted" \\path; and more'],
        },
    }
