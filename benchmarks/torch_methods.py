"""Every method in plain torch around torchvision's ResNets, as somebody who uses torch would write it.

From METHODS.md, section by section. What is batched is so where that is natural; what the originals do image
by image (MMAL-Net's objects, parts and crops, CMAL-Net's boxes and crops) is done so here too. Parameters
have the names of ours, with dots.

A twin is made as `NAMES[method](backbone, classes, size, **arguments of ours)` and trained by
`step(images [B, 3, S, S], labels [B], optimizer) -> the losses of its updates`.
"""

import random

import numpy as np
import torch
import torchvision
from skimage import measure
from torch import nn
from torch.nn import functional as F


class Baseline(nn.Module):
    """The plain classifier, and what the others share."""

    def __init__(self, backbone, classes, size):
        super().__init__()
        self.backbone = getattr(torchvision.models, backbone)()
        self.width = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.channels = [self.width // 8, self.width // 4, self.width // 2, self.width]
        self.build(self.width, classes, size)

    def build(self, width, classes, size):
        self.head = nn.Linear(width, classes)

    def loss(self, images, labels):
        return F.cross_entropy(self.head(self.backbone(images)), labels)

    def step(self, images, labels, optimizer):
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, labels)
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    def stem(self, x):
        net = self.backbone
        return net.maxpool(net.relu(net.bn1(net.conv1(x))))

    def stages(self):
        net = self.backbone
        return [net.layer1, net.layer2, net.layer3, net.layer4]

    def maps(self, x):
        """The maps of the four stages."""
        x, found = self.stem(x), []
        for stage in self.stages():
            x = stage(x)
            found.append(x)
        return found


class Pairs(Baseline):
    """FineNet's comparator (A.4), both images in one batch."""

    def build(self, width, classes, size):
        self.comparator = c = nn.Module()
        c.fc1, c.bn1 = nn.Linear(2 * width + 2, 192), nn.BatchNorm1d(192)
        c.fc2, c.bn2 = nn.Linear(192, 32), nn.BatchNorm1d(32)
        c.fc3, c.fc4 = nn.Linear(32, 2), nn.Linear(2, 1)

    def loss(self, images, labels):
        """Images [B, 2, 3, S, S]."""
        query, other = self.backbone(images.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        zero, c = torch.zeros_like(query[:, :1]), self.comparator
        x = F.gelu(c.bn1(c.fc1(torch.cat([zero, query, zero, other], 1))))
        x = F.gelu(c.bn2(c.fc2(x)))
        return F.binary_cross_entropy_with_logits(c.fc4(c.fc3(x))[:, 0], labels.float())


class Triplet(Baseline):
    """Batch-hard on embeddings of length 1 (B.2)."""

    def build(self, width, classes, size):
        self.head = nn.Linear(width, 128)

    def loss(self, images, labels):
        z = F.normalize(self.head(self.backbone(images)))
        distances = ((z[:, None] - z[None]).square().sum(2) + 1e-12).sqrt()
        same = labels[:, None] == labels[None]
        positive = same & ~torch.eye(len(labels), dtype=torch.bool)
        farthest = distances.masked_fill(~positive, 0).amax(1)
        nearest = distances.masked_fill(same, float("inf")).amin(1)
        return F.relu(farthest - nearest + 0.2).mean()


class Bilinear(Baseline):
    """The symmetric one on the last map (G)."""

    def __init__(self, backbone, classes, size, reduction):
        self.reduction = reduction
        super().__init__(backbone, classes, size)

    def build(self, width, classes, size):
        self.reduce = nn.Conv2d(width, self.reduction, 1)
        self.head = nn.Linear(self.reduction**2, classes)

    def loss(self, images, labels):
        x = self.reduce(self.maps(images)[3]).flatten(2)
        phi = (torch.bmm(x, x.transpose(1, 2)) / x.shape[2]).flatten(1)
        phi = F.normalize(phi.sign() * (phi.abs() + 1e-5).sqrt())
        return F.cross_entropy(self.head(phi), labels)


class MultiGranularity(Baseline):
    """Branches and classifiers at the three deepest stages (C.3, C.4, F.1)."""

    def __init__(self, backbone, classes, size, hidden, width):
        self.of_branch = (hidden, width)
        super().__init__(backbone, classes, size)

    def build(self, width, classes, size):
        hidden, width = self.of_branch
        self.heads = nn.Module()
        self.heads.branches, self.heads.classifiers = nn.ModuleList(), nn.ModuleList()
        for inputs in self.channels[1:]:
            branch = nn.Module()
            branch.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
            branch.bn1 = nn.BatchNorm2d(hidden, momentum=0.01)
            branch.conv2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
            branch.bn2 = nn.BatchNorm2d(width, momentum=0.01)
            self.heads.branches.append(branch)
            self.heads.classifiers.append(self.classifier(width, hidden, classes))
        self.heads.concat = self.classifier(3 * width, hidden, classes)

    @staticmethod
    def classifier(inputs, hidden, classes):
        c = nn.Module()
        c.bn1, c.fc1 = nn.BatchNorm1d(inputs), nn.Linear(inputs, hidden)
        c.bn2, c.fc2 = nn.BatchNorm1d(hidden), nn.Linear(hidden, classes)
        return c

    def branch(self, number, x):
        b = self.heads.branches[number]
        return F.relu(b.bn2(b.conv2(F.relu(b.bn1(b.conv1(x))))))

    def classify(self, pooled):
        """Logits of the branches and of all together."""
        inputs = [*pooled, torch.cat(pooled, 1)]
        classifiers = [*self.heads.classifiers, self.heads.concat]
        return [
            c.fc2(F.elu(c.bn2(c.fc1(c.bn1(x))))) for c, x in zip(classifiers, inputs, strict=True)
        ]


class FBSD(MultiGranularity):
    def build(self, width, classes, size):
        super().build(width, classes, size)
        self.strips = nn.ModuleList()
        for inputs in self.channels[1:]:
            strips = nn.Module()
            strips.conv, strips.bn = nn.Conv2d(inputs, 1, 1), nn.BatchNorm2d(1)
            self.strips.append(strips)

    def boost_and_suppress(self, number, x, count):
        """C.2, with the statistics of the whole map."""
        strips = self.strips[number]
        scores = F.relu(strips.bn(strips.conv(x)))
        b = scores.reshape(len(x), count, -1).mean(2).softmax(1)
        kept = torch.where(b.detach() == b.detach().amax(1, keepdim=True), 0.5, 1.0)
        boost, kept = (
            rows.repeat_interleave(x.shape[2] // count, 1)[:, None, :, None]
            for rows in (1 + 0.5 * b, kept)
        )
        return boost * x, kept * x

    def loss(self, images, labels):
        first, *stages = self.stages()
        x, cells = first(self.stem(images)), []
        for number, (stage, count) in enumerate(zip(stages, (8, 4, 2), strict=True)):
            boosted, x = self.boost_and_suppress(number, stage(x), count)
            cells.append(self.branch(number, boosted).flatten(2))
        units, added = [F.normalize(x, dim=1) for x in cells], list(cells)
        for i, j in ((0, 1), (0, 2), (1, 2)):  # C.3
            unlike = -torch.bmm(units[i].transpose(1, 2), units[j])
            added[j] = added[j] + 0.001 * torch.bmm(cells[i], unlike.softmax(1))
            added[i] = added[i] + 0.001 * torch.bmm(cells[j], unlike.softmax(2).transpose(1, 2))
        pooled = [x.topk(min(5, x.shape[2]), dim=2).values.mean(2) for x in added]
        *branches, concat = [F.cross_entropy(x, labels) for x in self.classify(pooled)]
        return 2 * sum(branches) + concat


class MMAL(Baseline):
    """All three branches, as after the first epoch (D); without dropout."""

    def __init__(self, backbone, classes, size, windows, dropout):
        assert not dropout
        super().__init__(backbone, classes, size)
        self.size, self.scales = size, []
        for part in windows.split(","):
            count, shapes = part.split(" of ")
            shapes = [tuple(map(int, shape.split("x"))) for shape in shapes.split()]
            corners = [
                (i, j, i + h, j + w)
                for h, w in shapes
                for i in range(size // 32 - h + 1)
                for j in range(size // 32 - w + 1)
            ]
            boxes = np.clip(32 * np.array(corners) - 1, 0, size - 1)
            self.scales.append((int(count), shapes, boxes))

    def branch(self, images):
        """(the map before the last, the last one, logits)."""
        maps = self.maps_of_last_blocks(images)
        return *maps, self.head(maps[-1].mean((2, 3)))

    def maps_of_last_blocks(self, images):
        net = self.backbone
        x = net.layer3(net.layer2(net.layer1(self.stem(images))))
        for block in net.layer4[:-1]:
            x = block(x)
        return x, net.layer4[-1](x)

    def loss(self, images, labels):
        before, last, logits = self.branch(images)
        with torch.no_grad():
            pairs = zip(before.sum(1).numpy(), last.sum(1).numpy(), strict=True)
            boxes = [self.object_box(*pair) for pair in pairs]
            objects = torch.cat(
                [cut(x, box, self.size) for x, box in zip(images, boxes, strict=True)]
            )
        _, last, object_logits = self.branch(objects)
        with torch.no_grad():
            parts = torch.cat(
                [
                    cut(image, box, self.size // 2)
                    for image, boxes in zip(objects, self.part_boxes(last), strict=True)
                    for box in boxes
                ]
            )
        _, _, part_logits = self.branch(parts)
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(object_logits, labels)
        repeated = labels.repeat_interleave(len(parts) // len(images))
        return loss + F.cross_entropy(part_logits, repeated)

    def object_box(self, before, last):
        """Sums over channels of two maps -> first row, first column, last row, last column (D.2)."""
        strong = last > last.mean()
        regions = measure.label(strong)
        areas = [region.area for region in measure.regionprops(regions)]
        if areas:
            strong = regions == 1 + areas.index(max(areas))
        rows, columns = np.nonzero(strong & (before > before.mean()))
        if not len(rows):
            return 0, 0, self.size - 1, self.size - 1
        corners = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        return [min(max(32 * int(n) - 1, 0), self.size - 1) for n in corners]

    def part_boxes(self, last):
        """For each image the boxes of its parts (D.3)."""
        chosen = [[] for _ in last]
        for count, shapes, boxes in self.scales:
            means = [F.avg_pool2d(last, shape, stride=1).sum(1).flatten(1) for shape in shapes]
            for number, scores in enumerate(torch.cat(means, 1).numpy()):
                chosen[number] += [boxes[i] for i in suppress(scores, boxes, count)]
        return chosen


def suppress(scores, boxes, count):
    """Greedy: the best `count` boxes that hardly overlap; the last one again where none is left."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    left, picked = scores.argsort()[::-1], []
    for _ in range(count):
        if len(left):
            best, left = left[0], left[1:]
        picked.append(best)
        ends = np.minimum(boxes[left, 2:], boxes[best, 2:])
        sides = ends - np.maximum(boxes[left, :2], boxes[best, :2]) + 1
        both = sides.clip(0).prod(1)
        left = left[both / (areas[left] + areas[best] - both) <= 0.25]
    return picked


def cut(image, box, out):
    """The inclusive box of an image [3, S, S], enlarged to [1, 3, out, out]."""
    top, left, bottom, right = box
    part = image[None, :, top : bottom + 1, left : right + 1]
    return F.interpolate(part, (out, out), mode="bilinear", align_corners=True)


class PIM(Baseline):
    """E.2 and E.3, bilinear from level to level; without dropout."""

    def __init__(self, backbone, classes, size, width, num_selects, dropout):
        assert not dropout
        self.of_pyramid, self.selects = width, num_selects
        super().__init__(backbone, classes, size)

    def build(self, _, classes, size):
        width, total = self.of_pyramid, sum(self.selects)
        self.levels = nn.ModuleList()
        for channels in self.channels:
            level = nn.Module()
            level.project, level.classifier = nn.Module(), nn.Module()
            level.project.fc1 = nn.Conv2d(channels, channels, 1)
            level.project.fc2 = nn.Conv2d(channels, width, 1)
            level.classifier.fc1 = nn.Conv1d(width, width, 1)
            level.classifier.bn = nn.BatchNorm1d(width)
            level.classifier.fc2 = nn.Conv1d(width, classes, 1)
            self.levels.append(level)
        self.combiner = c = nn.Module()
        nodes = total // 32
        c.pool, c.merge = nn.Linear(total, nodes), nn.Linear(nodes, 1)
        c.adjacency = nn.Parameter(torch.eye(nodes) / 100 + 1 / 100)
        c.alpha = nn.Parameter(torch.zeros(1))
        c.query, c.key = nn.Conv1d(width, width // 4, 1), nn.Conv1d(width, width // 4, 1)
        c.conv, c.bn = nn.Conv1d(width, width, 1), nn.BatchNorm1d(width)
        c.head = nn.Linear(width, classes)

    def loss(self, images, labels):
        pyramid = [
            level.project.fc2(F.relu(level.project.fc1(x)))
            for level, x in zip(self.levels, self.maps(images), strict=True)
        ]
        for i in (2, 1, 0):
            size = pyramid[i].shape[2:]
            pyramid[i] = pyramid[i] + F.interpolate(pyramid[i + 1], size, mode="bilinear")
        loss, chosen = 0, []
        for level, x, count in zip(self.levels, pyramid, self.selects, strict=True):
            c, x = level.classifier, x.flatten(2)
            logits = c.fc2(F.relu(c.bn(c.fc1(x))))
            loss = loss + 0.5 * F.cross_entropy(logits.mean(2), labels)
            places = logits.softmax(1).amax(1).argsort(1, descending=True)[:, None]
            best, rest = places[..., :count], places[..., count:]
            if rest.shape[2]:
                left = logits.gather(2, rest.expand(-1, logits.shape[1], -1)).tanh()
                loss = loss + 5 * F.mse_loss(left, -torch.ones_like(left))
            chosen.append(x.gather(2, best.expand(-1, x.shape[1], -1)))
        return loss + F.cross_entropy(self.combine(torch.cat(chosen, 2)), labels)

    def combine(self, x):
        c = self.combiner
        x = c.pool(x)
        query, key = c.query(x).mean(1), c.key(x).mean(1)
        graph = c.adjacency + c.alpha * torch.tanh(query[:, :, None] - key[:, None, :])
        return c.head(c.merge(c.bn(c.conv(x) @ graph)).flatten(1))


class CMAL(MultiGranularity):
    """Five updates a step (F.3)."""

    draw = staticmethod(random.randrange)  # which image an expert is shown

    def forward(self, images):
        """(logits of the experts and of all together, maps of the experts)."""
        maps = [self.branch(i, x) for i, x in enumerate(self.maps(images)[1:])]
        return self.classify([x.flatten(2).amax(2) for x in maps]), maps

    def step(self, images, labels, optimizer):
        losses = []

        def update(loss):
            # Zeros and not None: what has no part in an update decays all the same (1.4).
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

        logits, maps = self(images)
        predicted, maps = [x.argmax(1) for x in logits[:3]], [x.detach() for x in maps]
        update(F.cross_entropy(logits[2], labels))
        del logits
        *seen, region = self.crops(images, maps, predicted)
        for expert, others in ((1, (2, 0)), (0, (2, 1))):
            shown = [*(seen[i] for i in others), images][self.draw(3)]
            update(F.cross_entropy(self(shown)[0][expert], labels))
        *experts, concat = [F.cross_entropy(x, labels) for x in self(region)[0]]
        update(sum(experts) + 2 * concat)
        update(2 * F.cross_entropy(self(images)[0][3], labels))
        return losses

    @torch.no_grad()
    def crops(self, images, maps, predicted):
        """What each expert attends to, and all together, at the images' size (F.2)."""
        size, attention = images.shape[-1], []
        for classifier, x, classes in zip(self.heads.classifiers, maps, predicted, strict=True):
            vectors = classifier.fc2.weight[classes] @ classifier.fc1.weight
            found = torch.einsum("bdhw,bd->bhw", x, vectors)[:, None]
            found = F.interpolate(found, (size, size), mode="bilinear", align_corners=True)
            attention.append(between_0_and_1(found[:, 0]))
        attention.append(between_0_and_1(sum(attention)))
        return [
            torch.cat([cut(x, box(a), size) for x, a in zip(images, of_images, strict=True)])
            for of_images in attention
        ]


def between_0_and_1(x):
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low + 1e-6)


def box(attention, padding=0.1, threshold=0.5):
    """The inclusive box of one map [S, S]; the whole image where nothing is seen."""
    size, ends = len(attention), []
    places = (attention >= threshold).nonzero()
    if not len(places):
        return 0, 0, size - 1, size - 1
    for positions in places.unbind(1):
        first = max(int(positions.min() - padding * size), 0)
        ends.append((first, max(min(int(positions.max() + padding * size), size) - 1, first)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


NAMES = {
    "baseline": Baseline,
    "bilinear": Bilinear,
    "cmal": CMAL,
    "fbsd": FBSD,
    "mmal": MMAL,
    "pairs": Pairs,
    "pim": PIM,
    "triplet": Triplet,
}
