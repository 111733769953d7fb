"""What states the version of a release agrees."""

import re

from places import ROOT

import scdl


def test_version_changelog_and_citation_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    titles = re.findall(r"^## \[(.+)\](?: - (\S+))?$", changelog, re.MULTILINE)
    assert titles[0] == ("Unreleased", "")
    citation = (ROOT / "CITATION.cff").read_text()
    stated = dict(re.findall(r"^(version|date-released): (\S+)$", citation, re.MULTILINE))
    assert titles[1] == (stated["version"], stated["date-released"])
    assert stated["version"] == scdl.__version__
