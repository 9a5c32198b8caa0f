"""The HTML page: hostile data stay data, and only the page's own script may run."""

import base64
import hashlib
import json

from report_pages import PageParser

from kit.report.page import render_page


def test_hostile_values_stay_data_and_the_policy_allows_this_script_alone():
    hostile = "</script><script>alert(1)</script><!-- [[data]] \u2028 & \"'"
    text = render_page({"title": hostile, hostile: [hostile]}, ["AAAA\nBBBB"])
    parsed = PageParser(text)
    assert json.loads(parsed.scripts[0]) == {"title": hostile, hostile: [hostile]}
    scripts = [attributes for tag, attributes in parsed.tags if tag == "script"]
    assert [one.get("type") for one in scripts] == ["application/json", "text/plain", None]
    assert parsed.scripts[1] == "AAAA\nBBBB"
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[2].encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in parsed.tags if "http-equiv" in a]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    links = {attributes["href"] for _, attributes in parsed.tags if "href" in attributes}
    assert links == {"data:,", "#view"}
    assert not [attributes for _, attributes in parsed.tags if "src" in attributes]
