"""Label sets: the classes a network knows, their colours and their data set ids."""

from dataclasses import dataclass

IGNORE_INDEX = 255


@dataclass(frozen=True, slots=True)
class Label:
    """One class. Its train id is its place in the label set; ``label_id`` is the data set's own."""

    name: str
    label_id: int
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The classes of one data set in train-id order."""

    name: str
    labels: tuple[Label, ...]

    @property
    def num_classes(self) -> int:
        return len(self.labels)


CAMVID = LabelSet(
    "camvid",
    (
        Label("sky", 0, (128, 128, 128)),
        Label("building", 1, (128, 0, 0)),
        Label("pole", 2, (192, 192, 128)),
        Label("road", 3, (128, 64, 128)),
        Label("pavement", 4, (60, 40, 222)),
        Label("tree", 5, (128, 128, 0)),
        Label("sign symbol", 6, (192, 128, 128)),
        Label("fence", 7, (64, 64, 128)),
        Label("car", 8, (64, 0, 128)),
        Label("pedestrian", 9, (64, 64, 0)),
        Label("bicyclist", 10, (0, 128, 192)),
    ),
)

CITYSCAPES = LabelSet(
    "cityscapes",
    (
        Label("road", 7, (128, 64, 128)),
        Label("sidewalk", 8, (244, 35, 232)),
        Label("building", 11, (70, 70, 70)),
        Label("wall", 12, (102, 102, 156)),
        Label("fence", 13, (190, 153, 153)),
        Label("pole", 17, (153, 153, 153)),
        Label("traffic light", 19, (250, 170, 30)),
        Label("traffic sign", 20, (220, 220, 0)),
        Label("vegetation", 21, (107, 142, 35)),
        Label("terrain", 22, (152, 251, 152)),
        Label("sky", 23, (70, 130, 180)),
        Label("person", 24, (220, 20, 60)),
        Label("rider", 25, (255, 0, 0)),
        Label("car", 26, (0, 0, 142)),
        Label("truck", 27, (0, 0, 70)),
        Label("bus", 28, (0, 60, 100)),
        Label("train", 31, (0, 80, 100)),
        Label("motorcycle", 32, (0, 0, 230)),
        Label("bicycle", 33, (119, 11, 32)),
    ),
)

LABEL_SETS = {label_set.name: label_set for label_set in (CAMVID, CITYSCAPES)}
