"""What tests of the HTML pages share."""

import base64
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import torch

from kit.classifier import Classifier, ClassifierConfig
from kit.report.pixels import POINTS


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


def read_images(path):
    """The images of each series on a page: WebP in base64, or nothing, of each slice."""
    return [text.split("\n") for text in PageParser(path.read_text(encoding="utf-8")).scripts[1:-1]]


def decode_image(text):
    """The levels of an image of a page, uint8 (side, side)."""
    encoded = np.frombuffer(base64.b64decode(text), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)


def restore_hounsfield(levels):
    """The HU of levels, as the browser computes them."""
    points, ends = zip(*POINTS, strict=True)
    return np.interp(levels, ends, points)


def make_classifier(architecture, image_size, **options):
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture=architecture, architecture_options=options, image_size=image_size, crop=False
    )
    return Classifier(config).eval()
