"""What tests of the HTML pages share."""

import json
from html.parser import HTMLParser

import torch

from kit.classifier import Classifier, ClassifierConfig


class PageParser(HTMLParser):
    """The tags of a page and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.inside = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def read_data(path):
    return json.loads(PageParser(path.read_text(encoding="utf-8")).scripts[0])


def make_classifier(architecture, image_size, **options):
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture=architecture, architecture_options=options, image_size=image_size, crop=False
    )
    return Classifier(config).eval()
