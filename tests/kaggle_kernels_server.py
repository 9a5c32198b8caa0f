"""The stand-in for Kaggle with datasets and notebooks."""

from __future__ import annotations

import io
import zipfile
from collections import deque

from kaggle_server import STORAGE, Fault, KaggleServer, read_start


class KernelsServer(KaggleServer):
    """Answers as Kaggle does about datasets and notebooks.

    `datasets` are those there by OWNER/SLUG: description, version and the `files` in them (bytes
    by path), archives unpacked. `dataset_states` and `kernel_states` are given out one a call, the
    last for ever. `kernels` are the pushed versions by OWNER/SLUG, the requests' fields;
    `output` what a notebook leaves, bytes by path, and `outputs` what single versions leave.
    `push_answer` is added to SaveKernel's.
    """

    def __init__(self):
        super().__init__()
        self.datasets: dict[str, dict] = {}
        self.dataset_states = deque(["READY"])
        self.kernels: dict[str, list[dict]] = {}
        self.kernel_states = deque(["COMPLETE"])
        self.failure = ""
        self.dataset_answer: dict = {"status": "ok"}
        self.push_answer: dict = {}
        self.output: dict[str, bytes] = {}
        self.outputs: dict[int, dict[str, bytes]] = {}
        self._names: dict[str, str] = {}

    def answer(self, method: str, fields: dict) -> dict | Fault:
        own = {
            "StartBlobUpload": self._start_blob,
            "GetDataset": self._describe_dataset,
            "GetDatasetStatus": lambda _: {"status": _next(self.dataset_states)},
            "CreateDataset": self._create_dataset,
            "CreateDatasetVersion": self._create_version,
            "SaveKernel": self._save_kernel,
            "GetKernel": self._describe_kernel,
            "GetKernelSessionStatus": self._give_state,
            "ListKernelSessionOutput": self._list_output,
        }
        return own[method](fields) if method in own else super().answer(method, fields)

    def _start_blob(self, fields: dict) -> dict:
        token = f"blob-{self.count('StartBlobUpload')}"
        self._names[token] = fields["name"]
        return {"token": token, "createUrl": f"{STORAGE}/{token}?signature=SIGNED"}

    def _describe_dataset(self, fields: dict) -> dict | Fault:
        found = self.datasets.get(f"{fields['ownerSlug']}/{fields['datasetSlug']}")
        if found is None:
            return Fault(404, "Not found")
        return {"description": found["description"], "currentVersionNumber": found["version"]}

    def _create_dataset(self, fields: dict) -> dict:
        return self._keep(f"{fields['ownerSlug']}/{fields['slug']}", fields, 1)

    def _create_version(self, fields: dict) -> dict:
        name = f"{fields['ownerSlug']}/{fields['datasetSlug']}"
        return self._keep(name, fields["body"], self.datasets[name]["version"] + 1)

    def _keep(self, name: str, fields: dict, version: int) -> dict:
        if "error" not in self.dataset_answer:
            files = {}
            for token in (file["token"] for file in fields["files"]):
                files.update(_unpack(self._names[token], self.uploads[token]))
            self.datasets[name] = {
                "description": fields["description"],
                "version": version,
                "files": files,
            }
        return self.dataset_answer

    def _save_kernel(self, fields: dict) -> dict:
        versions = self.kernels.setdefault(fields["slug"], [])
        versions.append(fields)
        url = f"https://www.kaggle.com/code/{fields['slug']}"
        return {"ref": fields["slug"], "url": url, "versionNumber": len(versions)} | (
            self.push_answer
        )

    def _count_versions(self, fields: dict) -> int:
        return len(self.kernels.get(f"{fields['userName']}/{fields['kernelSlug']}", ()))

    def _describe_kernel(self, fields: dict) -> dict | Fault:
        count = self._count_versions(fields)
        return {"metadata": {"currentVersionNumber": count}} if count else Fault(404, "Not found")

    def _give_state(self, fields: dict) -> dict | Fault:
        version = int(fields.get("versionLabel", "v1").removeprefix("v"))
        if version > self._count_versions(fields):
            return Fault(404, "Not found")
        return {"status": _next(self.kernel_states), "failureMessage": self.failure}

    def _list_output(self, fields: dict) -> dict:
        version = int(fields.get("versionLabel", f"v{self._count_versions(fields)}")[1:])
        output = self.outputs.get(version, self.output)
        names = sorted(output)
        start = read_start(fields)
        self.files.update({f"output-{number}": output[name] for number, name in enumerate(names)})
        files = [
            {"fileName": name, "url": f"{STORAGE}/output-{number}?signature=SIGNED"}
            for number, name in enumerate(names)
        ][start : start + 2]
        more = {"nextPageToken": str(start + 2)} if start + 2 < len(names) else {}
        return {"files": files, "log": "the log"} | more


def _next(states: deque) -> str:
    return states[0] if len(states) == 1 else states.popleft()


def _unpack(name: str, content: bytes) -> dict[str, bytes]:
    """An uploaded file as it is found in the dataset: the server unpacks a zip to a folder."""
    if not name.endswith(".zip"):
        return {name: content}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = name.removesuffix(".zip")
        return {
            f"{folder}/{member}": archive.read(member)
            for member in archive.namelist()
            if not member.endswith("/")
        }
