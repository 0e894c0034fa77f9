"""A stream of tar files in one plugin file: `0001.jpg` and `0001.cls` beside each other, as WebDataset writes them."""

import tarfile
from pathlib import Path

from pydantic import Field

from sslcli.contracts.data import DataInfo, RootedOptions, StreamDataset, StreamItem, StreamOptions
from sslcli.contracts.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


class TarOptions(StreamOptions, RootedOptions):
    """Options of a stream of tar files."""

    images: int | None = Field(default=None, ge=1)
    """How many images there are in all shards."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, if each image has a `.cls`."""


class TarShards(StreamDataset):
    """Images in tar files."""

    Options = TarOptions

    def __init__(self, options):
        super().__init__(options)
        self.root = options.root.expanduser()
        self.shards = tuple(sorted(path.name for path in self.root.glob("*.tar")))
        if not self.shards:
            raise UserError(f"data.root: no .tar files in {self.root}; set it to the folder that holds them")
        self.length = options.images
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.info = DataInfo("tar_shards", 3, None, mean, std, options.classes)

    def read(self, shard, position):
        with Path(self.root, self.shards[shard]).open("rb") as file:
            file.seek(position)  # a tar file can be read from the header of any member
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    content, end = tar.extractfile(member).read(), position_behind(member)
                    if member.name.endswith(IMAGES):
                        image, name = content, member.name
                        if self.info.classes is None:
                            yield StreamItem(image, end, name=name)
                    elif member.name.endswith(".cls") and self.info.classes is not None:
                        yield StreamItem(image, end, int(content), name)


def position_behind(member):
    """Where the next header is: members fill whole blocks of 512 bytes."""
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
