"""Images without a network: OCI image layouts of random layers, written with the standard library.

The layers are random, so that every run uses digests that no client, registry or cache has seen.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile

from parts import random_bytes

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

MIB = 1024 * 1024


class Layout:
    """An OCI image layout in `folder` (image-spec, image-layout.md)."""

    def __init__(self, folder):
        self.folder = folder
        self.tags = {}
        os.makedirs(os.path.join(folder, "blobs", "sha256"), exist_ok=True)
        with open(os.path.join(folder, "oci-layout"), "w") as file:
            json.dump({"imageLayoutVersion": "1.0.0"}, file)

    def add_image(self, tag, layer_sizes, arch="amd64"):
        """One image with random layers of about these sizes; its digest."""
        descriptor = self._image(layer_sizes, arch)
        return self._tag(tag, descriptor)

    def add_index(self, tag, layer_sizes, archs):
        """A multi-arch image; the digest of its index."""
        manifests = []
        for arch in archs:
            platform = {"architecture": arch, "os": "linux"}
            manifests.append({**self._image(layer_sizes, arch), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        return self._tag(tag, self._json(index, INDEX))

    def is_index(self, tag):
        """Whether a tag is that of a multi-arch image."""
        return self.tags[tag]["mediaType"] == INDEX

    def read(self, digest):
        """The bytes of a blob or manifest."""
        with open(os.path.join(self.folder, "blobs", *digest.split(":")), "rb") as file:
            return file.read()

    def blobs(self, digest):
        """Every digest that the image `digest` needs: manifests, configurations, layers."""
        found = [digest]
        manifest = json.loads(self.read(digest))
        for child in manifest.get("manifests", []):
            found += self.blobs(child["digest"])
        if "config" in manifest:
            found.append(manifest["config"]["digest"])
        return found + [layer["digest"] for layer in manifest.get("layers", [])]

    def _image(self, layer_sizes, arch):
        layers, diff_ids = [], []
        for number, size in enumerate(layer_sizes):
            descriptor, diff_id = self._layer(f"layer-{number}", size)
            layers.append(descriptor)
            diff_ids.append(diff_id)
        config = {
            "architecture": arch,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._json(config, CONFIG),
            "layers": layers,
        }
        return self._json(manifest, MANIFEST)

    def _layer(self, name, size):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, io.BytesIO(random_bytes(size)))
        plain = tar.getvalue()
        # Random bytes do not shrink: level 0 keeps a 300 MB image to a second.
        packed = gzip.compress(plain, compresslevel=0, mtime=0)
        return self._blob(packed, LAYER), "sha256:" + hashlib.sha256(plain).hexdigest()

    def _json(self, value, media_type):
        return self._blob(json.dumps(value).encode(), media_type)

    def _blob(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        with open(os.path.join(self.folder, "blobs", "sha256", digest), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    def _tag(self, tag, descriptor):
        name = {"org.opencontainers.image.ref.name": tag}
        self.tags[tag] = {**descriptor, "annotations": name}
        index = {"schemaVersion": 2, "manifests": list(self.tags.values())}
        with open(os.path.join(self.folder, "index.json"), "w") as file:
            json.dump(index, file)
        return descriptor["digest"]
