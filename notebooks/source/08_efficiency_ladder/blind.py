"""Blind answers to the exercises, written from the statements alone."""

import bisect
import functools
import itertools
import math
from fractions import Fraction

import numpy as np

INF = float("inf")

# ---------------------------------------------------------------------------------------------------------------------
# 8.1
# ---------------------------------------------------------------------------------------------------------------------


def _mlp(r):
    return (3 if r["gated"] else 2) * r["hidden"] * r["inner"]


def _matrices(r):
    return 6 * r["layers"] * (4 * r["hidden"] ** 2 + _mlp(r))


def _attention(r):
    return 12 * r["length"] * r["hidden"] * r["layers"]


def _head(r):
    return 6 * (r["hidden"] ** 2 + r["vocabulary"] * r["hidden"])


def _share(r):
    return r["scored"] if r["sparse"] else 1.0


def w81_always_sparse(recipe):
    return (_matrices(recipe) + _attention(recipe) + recipe["scored"] * _head(recipe)) / recipe["real"]


def w81_never_sparse(recipe):
    return (_matrices(recipe) + _attention(recipe) + _head(recipe)) / recipe["real"]


def w81_sparse_inverted(recipe):
    share = 1.0 if recipe["sparse"] else recipe["scored"]
    return (_matrices(recipe) + _attention(recipe) + share * _head(recipe)) / recipe["real"]


def w81_sparse_unscored(recipe):
    share = 1 - recipe["scored"] if recipe["sparse"] else 1.0
    return (_matrices(recipe) + _attention(recipe) + share * _head(recipe)) / recipe["real"]


def w81_always_gated(recipe):
    return _core81({**recipe, "gated": True})


def w81_never_gated(recipe):
    return _core81({**recipe, "gated": False})


def w81_gated_inverted(recipe):
    return _core81({**recipe, "gated": not recipe["gated"]})


def _core81(recipe):  # a helper of the wrong answers above and below: not an answer of its own
    return (_matrices(recipe) + _attention(recipe) + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_gated_is_four(recipe):
    h = recipe["hidden"]
    mlp = (4 if recipe["gated"] else 2) * h * recipe["inner"]
    total = 6 * recipe["layers"] * (4 * h * h + mlp) + _attention(recipe) + _share(recipe) * _head(recipe)
    return total / recipe["real"]


def w81_gate_is_inner_by_inner(recipe):
    h, f = recipe["hidden"], recipe["inner"]
    mlp = 2 * h * f + (f * f if recipe["gated"] else 0)
    total = 6 * recipe["layers"] * (4 * h * h + mlp) + _attention(recipe) + _share(recipe) * _head(recipe)
    return total / recipe["real"]


def w81_inner_is_four_hidden(recipe):
    return _core81({**recipe, "inner": 4 * recipe["hidden"]})


def w81_times_real(recipe):
    return _core81({**recipe, "real": 1.0}) * recipe["real"]


def w81_padding_ignored(recipe):
    return _core81({**recipe, "real": 1.0})


def w81_real_is_padding(recipe):
    total = _core81({**recipe, "real": 1.0})
    return total / (1 - recipe["real"]) if recipe["real"] < 1 else total


def w81_adds_the_padding(recipe):
    # x (1 + padding) looks like x / (1 - padding) while the padding is small
    return _core81({**recipe, "real": 1.0}) * (2 - recipe["real"])


def w81_padding_on_attention_only(recipe):
    return _matrices(recipe) + _attention(recipe) / recipe["real"] + _share(recipe) * _head(recipe)


def w81_padding_not_on_attention(recipe):
    return (_matrices(recipe) + _share(recipe) * _head(recipe)) / recipe["real"] + _attention(recipe)


def w81_padding_not_on_head(recipe):
    return (_matrices(recipe) + _attention(recipe)) / recipe["real"] + _share(recipe) * _head(recipe)


def w81_padding_not_on_sparse_head(recipe):
    # takes "scored" for a share of the real positions
    head = recipe["scored"] * _head(recipe) if recipe["sparse"] else _head(recipe) / recipe["real"]
    return (_matrices(recipe) + _attention(recipe)) / recipe["real"] + head


def w81_padding_twice_on_attention(recipe):
    real = recipe["real"]
    return (_matrices(recipe) + _share(recipe) * _head(recipe)) / real + _attention(recipe) / real**2


def w81_attention_over_real_only(recipe):
    real = recipe["real"]
    return (_matrices(recipe) + real * _attention(recipe) + _share(recipe) * _head(recipe)) / real


def w81_attention_of_one_layer(recipe):
    attention = 12 * recipe["length"] * recipe["hidden"]
    return (_matrices(recipe) + attention + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_attention_halved(recipe):
    return (_matrices(recipe) + _attention(recipe) / 2 + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_attention_forward_only(recipe):
    return (_matrices(recipe) + _attention(recipe) / 3 + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_attention_of_the_row(recipe):
    attention = _attention(recipe) * recipe["length"]
    return (_matrices(recipe) + attention + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_attention_left_out(recipe):
    return (_matrices(recipe) + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_forward_only(recipe):
    return (_matrices(recipe) / 3 + _attention(recipe) + _share(recipe) * _head(recipe) / 3) / recipe["real"]


def w81_backward_once_more(recipe):
    return 3 * _core81(recipe)


def w81_head_without_its_square(recipe):
    head = 6 * recipe["vocabulary"] * recipe["hidden"]
    return (_matrices(recipe) + _attention(recipe) + _share(recipe) * head) / recipe["real"]


def w81_head_without_vocabulary(recipe):
    head = 6 * recipe["hidden"] ** 2
    return (_matrices(recipe) + _attention(recipe) + _share(recipe) * head) / recipe["real"]


def w81_square_never_sparse(recipe):
    h, v = recipe["hidden"], recipe["vocabulary"]
    head = 6 * h * h + 6 * v * h * _share(recipe)
    return (_matrices(recipe) + _attention(recipe) + head) / recipe["real"]


def w81_only_square_sparse(recipe):
    h, v = recipe["hidden"], recipe["vocabulary"]
    head = 6 * h * h * _share(recipe) + 6 * v * h
    return (_matrices(recipe) + _attention(recipe) + head) / recipe["real"]


def w81_table_counted(recipe):
    table = 6 * recipe["vocabulary"] * recipe["hidden"]
    return (table + _matrices(recipe) + _attention(recipe) + _share(recipe) * _head(recipe)) / recipe["real"]


def w81_three_matrices(recipe):
    h = recipe["hidden"]
    total = 6 * recipe["layers"] * (3 * h * h + _mlp(recipe)) + _attention(recipe) + _share(recipe) * _head(recipe)
    return total / recipe["real"]


def w81_one_layer(recipe):
    return _core81({**recipe, "layers": 1})


def w81_head_in_each_layer(recipe):
    head = recipe["layers"] * _share(recipe) * _head(recipe)
    return (_matrices(recipe) + _attention(recipe) + head) / recipe["real"]


def w81_everything_sparse(recipe):
    return _share(recipe) * (_matrices(recipe) + _attention(recipe) + _head(recipe)) / recipe["real"]


def w81_a_scored_token(recipe):
    return _core81(recipe) / recipe["scored"]


def w81_scored_fixed(recipe):
    return _core81({**recipe, "scored": 0.3})


def w81_scored_of_the_real(recipe):
    # sparse: scored * real of the positions
    share = recipe["scored"] * recipe["real"] if recipe["sparse"] else recipe["real"]
    return (_matrices(recipe) + _attention(recipe) + share * _head(recipe)) / recipe["real"]


def w81_whole_scored_positions(recipe):
    share = round(recipe["scored"] * recipe["length"]) / recipe["length"] if recipe["sparse"] else 1.0
    return (_matrices(recipe) + _attention(recipe) + share * _head(recipe)) / recipe["real"]


def w81_and_or(recipe):
    share = (recipe["sparse"] and recipe["scored"]) or 1.0  # a share of 0 becomes 1
    return (_matrices(recipe) + _attention(recipe) + share * _head(recipe)) / recipe["real"]


def w81_whole_row(recipe):
    return _core81(recipe) * recipe["length"]




def r81_formula(recipe):
    L, H, F, V, S = (recipe[k] for k in ("layers", "hidden", "inner", "vocabulary", "length"))
    layer = 6 * (4 * H * H + (3 if recipe["gated"] else 2) * H * F) + 12 * S * H
    head = 6 * (H * H + V * H) * (recipe["scored"] if recipe["sparse"] else 1)
    return float((L * layer + head) / recipe["real"])


def r81_loop(recipe):
    h = recipe["hidden"]
    total = 0.0
    for _ in range(recipe["layers"]):
        for _ in range(4):
            total += 6 * h * h
        for _ in range(3 if recipe["gated"] else 2):
            total += 6 * h * recipe["inner"]
        total += 12 * recipe["length"] * h
    head = 0.0
    for columns in (h, recipe["vocabulary"]):
        head += 6 * h * columns
    if recipe["sparse"]:
        head *= recipe["scored"]
    return (total + head) / recipe["real"]


def r81_table(recipe):
    h, layers = recipe["hidden"], recipe["layers"]
    share = recipe["scored"] if recipe["sparse"] else 1.0
    table = [  # how many, operations of one, share of the positions
        (4 * layers, 6.0 * h * h, 1.0),
        ((2 + bool(recipe["gated"])) * layers, 6.0 * h * recipe["inner"], 1.0),
        (layers, 12.0 * recipe["length"] * h, 1.0),
        (1, 6.0 * h * h, share),
        (1, 6.0 * h * recipe["vocabulary"], share),
    ]
    return sum(count * each * part for count, each, part in table) / recipe["real"]


def r81_numpy(recipe):
    h = float(recipe["hidden"])
    share = recipe["scored"] if recipe["sparse"] else 1.0
    layers = recipe["layers"]
    sizes = np.array([h * h, h * recipe["inner"], 2 * h * recipe["length"], h * h, h * recipe["vocabulary"]])
    times = np.array([4.0 * layers, (3.0 if recipe["gated"] else 2.0) * layers, layers, share, share])
    return float(6.0 * np.dot(sizes, times) / recipe["real"])


def r81_batch(recipe):
    # an actual batch of 64 rows: everything it executes over its real tokens
    h, s = recipe["hidden"], recipe["length"]
    positions = 64 * s
    passed = recipe["layers"] * (4 * h**2 + (3 if recipe["gated"] else 2) * h * recipe["inner"])
    executed = positions * (6 * passed + 12 * s * h * recipe["layers"])
    executed += positions * (recipe["scored"] if recipe["sparse"] else 1) * 6 * h * (h + recipe["vocabulary"])
    return float(executed / (positions * recipe["real"]))


def r81_reduce(recipe):
    h = recipe["hidden"]
    layer = [h * h] * 4 + [h * recipe["inner"]] * (3 if recipe["gated"] else 2) + [2 * recipe["length"] * h]
    body = functools.reduce(lambda a, b: a + b, layer * recipe["layers"], 0)
    head = functools.reduce(lambda a, b: a + b, [h * h, recipe["vocabulary"] * h], 0)
    return 6.0 * (body + (head * recipe["scored"] if recipe["sparse"] else head)) / recipe["real"]


def r81_fractions(recipe):
    h = Fraction(int(recipe["hidden"]))
    mlp = (3 if recipe["gated"] else 2) * h * int(recipe["inner"])
    layer = 6 * (4 * h * h + mlp) + 12 * int(recipe["length"]) * h
    share = Fraction(float(recipe["scored"])) if recipe["sparse"] else Fraction(1)
    total = int(recipe["layers"]) * layer + share * 6 * (h * h + int(recipe["vocabulary"]) * h)
    return float(total / Fraction(float(recipe["real"])))


def r81_recursion(recipe):
    def tree(node):
        if isinstance(node, tuple):
            times, children = node
            return times * sum(tree(child) for child in children)
        return node

    h = recipe["hidden"]
    layer = (recipe["layers"], [(4, [h * h]), (2 + int(bool(recipe["gated"])), [h * recipe["inner"]]),
                                (2, [recipe["length"] * h])])
    head = (recipe["scored"] if recipe["sparse"] else 1, [h * h, recipe["vocabulary"] * h])
    return float(tree((6, [layer, head])) / recipe["real"])


# ---------------------------------------------------------------------------------------------------------------------
# 8.2
# ---------------------------------------------------------------------------------------------------------------------


def _line(t0, a, t1, b, loss):
    """When the straight line from (t0, a) to (t1, b) is at loss; a and b differ."""
    return t0 + (a - loss) / (a - b) * (t1 - t0)


def w82_time_of_the_look(points, loss):
    for t, x in points:
        if x <= loss:
            return t
    return INF


def w82_look_before(points, loss):
    before = points[0][0]
    for t, x in points:
        if x <= loss:
            return before
        before = t
    return INF


def w82_midpoint(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, _), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return (t0 + t1) / 2
    return INF


def w82_nearest_look(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return t0 if a - loss < loss - b else t1
    return INF


def w82_strictly_lower(points, loss):
    if points[0][1] < loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b < loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_equal_first_missed(points, loss):
    if points[0][1] < loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a > loss >= b:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_equal_look_missed(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a > loss > b:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_half_open_other_side(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a >= loss > b:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_sign_change(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if (a - loss) * (b - loss) < 0:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_any_crossing(points, loss):
    # a rising line counts too, and a low first look is not looked at
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if min(a, b) <= loss <= max(a, b):
            return t0 if a == b else _line(t0, a, t1, b, loss)
    return INF


def w82_last_crossing(points, loss):
    for i in range(len(points) - 1, 0, -1):
        (t0, a), (t1, b) = points[i - 1], points[i]
        if a > loss >= b:
            return _line(t0, a, t1, b, loss)
    return points[0][0] if points[0][1] <= loss else INF


def w82_for_good(points, loss):
    # the time from which on it stays low
    if points[-1][1] > loss:
        return INF
    i = len(points) - 1
    while i > 0 and points[i - 1][1] <= loss:
        i -= 1
    if i == 0:
        return points[0][0]
    return _line(*points[i - 1], *points[i], loss)


def w82_final_loss_decides(points, loss):
    if points[-1][1] > loss:
        return INF
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_first_look_ignored(points, loss):
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a > loss >= b:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_first_look_last(points, loss):
    # a low first look is only the answer if nothing crosses later
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a > loss >= b:
            return _line(t0, a, t1, b, loss)
    return points[0][0] if points[0][1] <= loss else INF


def w82_first_look_is_zero(points, loss):
    if points[0][1] <= loss:
        return 0.0
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_first_look_extended_back(points, loss):
    if points[0][1] <= loss:
        if len(points) == 1 or points[1][1] >= points[0][1]:
            return points[0][0]
        return max(0.0, _line(*points[0], *points[1], loss))
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_single_point_is_never(points, loss):
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if a <= loss:
            return t0
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_single_point_is_always(points, loss):
    if len(points) == 1:
        return points[0][0]
    return _core82(points, loss)


def _core82(points, loss):  # a helper of the wrong answers: not an answer of its own
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_none_if_never(points, loss):
    found = _core82(points, loss)
    return None if found == INF else found


def w82_end_if_never(points, loss):
    found = _core82(points, loss)
    return points[-1][0] if found == INF else found


def w82_extended_if_never(points, loss):
    found = _core82(points, loss)
    if found == INF and len(points) > 1 and points[-1][1] < points[-2][1]:
        return _line(*points[-2], *points[-1], loss)
    return found


def w82_zero_is_false(points, loss):
    found = None
    if points[0][1] <= loss:
        found = points[0][0]
    else:
        for (t0, a), (t1, b) in zip(points, points[1:]):
            if b <= loss:
                found = _line(t0, a, t1, b, loss)
                break
    return found or INF  # a first look at 0 seconds


def w82_since_the_first_look(points, loss):
    return _core82(points, loss) - points[0][0]


def w82_fraction_swapped(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return t0 + (loss - b) / (a - b) * (t1 - t0)
    return INF


def w82_logarithm_of_loss(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            if b <= 0 or loss <= 0:
                return t1
            return t0 + math.log(a / loss) / math.log(a / b) * (t1 - t0)
    return INF


def w82_logarithm_of_time(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b <= loss:
            return math.expm1(_line(math.log1p(t0), a, math.log1p(t1), b, loss))
    return INF


def w82_interp_reversed(points, loss):
    times = [t for t, _ in points]
    losses = [x for _, x in points]
    if loss < min(losses):
        return INF
    return float(np.interp(loss, losses[::-1], times[::-1]))


def w82_interp_sorted(points, loss):
    rows = sorted((x, t) for t, x in points)
    if loss < rows[0][0]:
        return INF
    if points[0][1] <= loss:
        return points[0][0]
    return float(np.interp(loss, [x for x, _ in rows], [t for _, t in rows]))


def w82_binary_search(points, loss):
    low, high = 0, len(points)
    while low < high:
        middle = (low + high) // 2
        if points[middle][1] <= loss:
            high = middle
        else:
            low = middle + 1
    if low == len(points):
        return INF
    if low == 0:
        return points[0][0]
    return _line(*points[low - 1], *points[low], loss)


def w82_from_the_best_look(points, loss):
    best_t, best = points[0]
    if best <= loss:
        return best_t
    for t, x in points[1:]:
        if x <= loss:
            return _line(best_t, best, t, x, loss)
        if x < best:
            best_t, best = t, x
    return INF


def w82_best_so_far(points, loss):
    times = [t for t, _ in points]
    best = list(itertools.accumulate((x for _, x in points), min))
    return _core82(list(zip(times, best)), loss)


def w82_stops_when_it_rises(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b > a:
            break
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_stops_at_a_plateau(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    for (t0, a), (t1, b) in zip(points, points[1:]):
        if b == a:
            break
        if b <= loss:
            return _line(t0, a, t1, b, loss)
    return INF


def w82_end_of_the_plateau(points, loss):
    for i, (t, x) in enumerate(points):
        if x == loss:
            while i + 1 < len(points) and points[i + 1][1] == loss:
                i += 1
            return points[i][0]
        if x < loss:
            return t if i == 0 else _line(*points[i - 1], t, x, loss)
    return INF


def w82_equal_look_wins(points, loss):
    for t, x in points:
        if x == loss:
            return t
    return _core82(points, loss)


def w82_time_of_the_minimum(points, loss):
    t, x = min(points, key=lambda p: p[1])
    return t if x <= loss else INF


def w82_segment_to_the_minimum(points, loss):
    i = min(range(len(points)), key=lambda k: points[k][1])
    if points[i][1] > loss:
        return INF
    if points[0][1] <= loss:
        return points[0][0]
    while i > 0 and points[i - 1][1] <= loss:
        i -= 1
    return _line(*points[i - 1], *points[i], loss)


def w82_times_by_loss(points, loss):
    when = {x: t for t, x in points}  # a loss seen twice keeps its later time
    losses = [x for _, x in points]
    if losses[0] <= loss:
        return points[0][0]
    for a, b in zip(losses, losses[1:]):
        if b <= loss:
            return _line(when[a], a, when[b], b, loss)
    return INF


def w82_looks_evenly_spaced(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    if len(points) == 1:
        return INF
    start, step = points[0][0], points[1][0] - points[0][0]
    for i in range(1, len(points)):
        a, b = points[i - 1][1], points[i][1]
        if b <= loss:
            return start + step * (i - 1 + (a - loss) / (a - b))
    return INF


def w82_chord(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    if min(x for _, x in points) > loss or points[-1][1] >= points[0][1]:
        return INF
    return _line(*points[0], *points[-1], loss)


def w82_smoothed(points, loss):
    smooth = [points[0]] + [(t1, (a + b) / 2) for (_, a), (t1, b) in zip(points, points[1:])]
    return _core82(smooth, loss)


def w82_grid_of_a_hundred(points, loss):
    times = [t for t, _ in points]
    losses = [x for _, x in points]
    for t in np.linspace(times[0], times[-1], 101):
        if np.interp(t, times, losses) <= loss:
            return float(t)
    return INF


def w82_whole_seconds(points, loss):
    found = _core82(points, loss)
    return found if found == INF else float(math.ceil(found))


def w82_within_a_percent(points, loss):
    return _core82(points, 1.01 * loss)


def r82_loop(points, loss):
    earlier = None
    for t, x in points:
        if x <= loss:
            if earlier is None:
                return float(t)
            t0, a = earlier
            return t0 + (t - t0) * (a - loss) / (a - x)
        earlier = (t, x)
    return float("inf")


def r82_next(points, loss):
    i = next((k for k, (_, x) in enumerate(points) if x <= loss), None)
    if i is None:
        return math.inf
    if i == 0:
        return points[0][0]
    (t0, a), (t1, b) = points[i - 1], points[i]
    share = (loss - a) / (b - a)
    return (1 - share) * t0 + share * t1


def r82_numpy(points, loss):
    table = np.asarray(points, dtype=np.float64)
    low = table[:, 1] <= loss
    if not low.any():
        return float("inf")
    i = int(np.argmax(low))
    if i == 0:
        return float(table[0, 0])
    return float(np.interp(loss, table[[i, i - 1], 1], table[[i, i - 1], 0]))


def r82_halves(points, loss):
    def search(low, high):  # the look at low is above the loss
        if low == high:
            return float("inf")
        if high - low == 1:
            (t0, a), (t1, b) = points[low], points[high]
            return t0 + (t1 - t0) * ((a - loss) / (a - b)) if b <= loss else float("inf")
        middle = (low + high) // 2
        left = search(low, middle)
        return left if left < float("inf") else search(middle, high)

    return points[0][0] if points[0][1] <= loss else search(0, len(points) - 1)


def r82_running_minimum(points, loss):
    negated = [-x for x in itertools.accumulate((x for _, x in points), min)]
    i = bisect.bisect_left(negated, -loss)
    if i == len(points):
        return float("inf")
    if i == 0:
        return points[0][0]
    (t0, a), (t1, b) = points[i - 1], points[i]
    return t1 - (loss - b) * (t1 - t0) / (a - b)


def r82_least_of_all_falls(points, loss):
    if points[0][1] <= loss:
        return points[0][0]
    falls = [
        t0 + (a - loss) * (t1 - t0) / (a - b) for (t0, a), (t1, b) in zip(points, points[1:]) if a > loss >= b
    ]
    return min(falls, default=float("inf"))


def r82_fractions(points, loss):
    exact = [(Fraction(float(t)), Fraction(float(x))) for t, x in points]
    wanted = Fraction(float(loss))
    if exact[0][1] <= wanted:
        return float(exact[0][0])
    for (t0, a), (t1, b) in zip(exact, exact[1:]):
        if b <= wanted:
            return float(t0 + (a - wanted) / (a - b) * (t1 - t0))
    return float("inf")


def r82_while(points, loss):
    i = 0
    while points[i][1] > loss:
        i += 1
        if i == len(points):
            return float("inf")
    if i == 0:
        return points[0][0]
    slope = (points[i][1] - points[i - 1][1]) / (points[i][0] - points[i - 1][0])
    return points[i - 1][0] + (loss - points[i - 1][1]) / slope


# ---------------------------------------------------------------------------------------------------------------------
# 8.3
# ---------------------------------------------------------------------------------------------------------------------


def w83_attention_ignored(token, attention, packing, length):
    return packing / (token + packing)


def w83_attention_once(token, attention, packing, length):
    return packing / (token + attention + packing)


def w83_attention_squared(token, attention, packing, length):
    return packing / (token + attention * length**2 + packing)


def w83_attention_halved(token, attention, packing, length):
    return packing / (token + attention * length / 2 + packing)


def w83_attention_not_itself(token, attention, packing, length):
    return packing / (token + attention * (length - 1) + packing)


def w83_attention_only(token, attention, packing, length):
    # a padding position is taken to cost attention alone
    cost = attention * length + packing
    return packing / cost if cost else 0.0


def w83_attention_times_token(token, attention, packing, length):
    return packing / (token * attention * length + packing) if packing else 0.0


def w83_length_on_both(token, attention, packing, length):
    return packing / ((token + attention) * length + packing)


def w83_whole_row_against_one(token, attention, packing, length):
    return packing / (length * (token + attention * length) + packing)


def w83_packing_over_cost(token, attention, packing, length):
    return packing / (token + attention * length)


def w83_packing_over_cost_capped(token, attention, packing, length):
    return min(1.0, packing / (token + attention * length))


def w83_complement(token, attention, packing, length):
    cost = token + attention * length
    return cost / (cost + packing)


def w83_packing_times_length(token, attention, packing, length):
    return packing * length / (token + attention * length + packing * length)


def w83_packing_a_row(token, attention, packing, length):
    a_token = packing / length
    return a_token / (token + attention * length + a_token)


def w83_packed_without_attention(token, attention, packing, length):
    cost = token + attention * length
    return max(0.0, 1 - cost / (token + packing))


def w83_packed_attends_its_own(token, attention, packing, length):
    # packed tokens are taken to look at the real length of their own row: right at attention 0 and at packing 0
    work = attention * length
    if work == 0:
        return packing / (token + packing)
    real = (-(token + packing) + math.sqrt((token + packing) ** 2 + 4 * work * (token + work))) / (2 * work)
    return 1 - real


def w83_both_packed(token, attention, packing, length):
    cost = token + attention * length + packing
    return 1 - cost / cost


def w83_percent(token, attention, packing, length):
    return 100 * packing / (token + attention * length + packing)


def w83_no_attention_no_padding(token, attention, packing, length):
    if attention == 0 or packing == 0:
        return 0.0
    return packing / (token + attention * length + packing)


def w83_no_attention_never(token, attention, packing, length):
    if attention == 0:
        return 1.0
    return packing / (token + attention * length + packing)


def w83_free_packing_is_one(token, attention, packing, length):
    if not packing:
        return 1.0
    return packing / (token + attention * length + packing)


def w83_attention_or_token(token, attention, packing, length):
    attention = attention or token
    return packing / (token + attention * length + packing)


def w83_packing_or_token(token, attention, packing, length):
    packing = packing or token
    return packing / (token + attention * length + packing)


def w83_dear_packing_never_pays(token, attention, packing, length):
    cost = token + attention * length
    if packing >= cost:
        return 1.0
    return packing / (cost + packing)


def w83_at_most_half(token, attention, packing, length):
    return min(0.5, packing / (token + attention * length + packing))


def w83_two_decimals(token, attention, packing, length):
    return round(packing / (token + attention * length + packing), 2)


def w83_grid(token, attention, packing, length):
    cost = token + attention * length
    return min((i / 100 for i in range(100)), key=lambda p: abs(cost / (1 - p) - cost - packing))


def w83_ten_halvings(token, attention, packing, length):
    cost = token + attention * length
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        if cost / (1 - middle) < cost + packing:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def w83_whole_positions(token, attention, packing, length):
    share = packing / (token + attention * length + packing)
    return math.ceil(share * length) / length


def w83_square_root(token, attention, packing, length):
    cost = token + attention * length
    return 1 - math.sqrt(cost / (cost + packing))


def w83_padding_squares_attention(token, attention, packing, length):
    # cost / (1 - p) for the token, / (1 - p) ** 2 for attention; right at attention 0
    work = attention * length
    total = token + work + packing
    # total q^2 - token q - work = 0
    real = (token + math.sqrt(token**2 + 4 * total * work)) / (2 * total)
    return 1 - real


def w83_second_order(token, attention, packing, length):
    ratio = packing / (token + attention * length)
    return ratio - ratio**2


def w83_exponential(token, attention, packing, length):
    return 1 - math.exp(-packing / (token + attention * length))


def w83_minus_packing(token, attention, packing, length):
    cost = token + attention * length
    return packing / (cost - packing) if cost > packing else 1.0


def w83_two_packings(token, attention, packing, length):
    return packing / (token + attention * length + 2 * packing)


def r83_formula(token, attention, packing, length):
    return packing / (token + attention * length + packing)


def r83_one_minus_real(token, attention, packing, length):
    padded = token + attention * length
    packed = padded + packing
    return 1.0 - padded / packed


def r83_halving(token, attention, packing, length):
    padded = token + length * attention
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if padded >= (padded + packing) * (1.0 - middle):
            high = middle
        else:
            low = middle
    return low


def r83_straight_line(token, attention, packing, length):
    # padded cost less packed cost, of a row with that share of real tokens, is a straight line: where is it 0?
    def difference(share):
        position = token + attention * length
        return position - (1 - share) * (position + packing)

    at_zero, at_one = difference(0.0), difference(1.0)
    return -at_zero / (at_one - at_zero)


def r83_fractions(token, attention, packing, length):
    t, a, k = (Fraction(float(x)) for x in (token, attention, packing))
    return float(k / (t + a * int(length) + k))


def r83_positions_a_token(token, attention, packing, length):
    position = sum((token, attention * length))
    positions = (position + packing) / position  # padded positions that cost as much as a packed token
    return (positions - 1) / positions


def r83_numpy(token, attention, packing, length):
    padded = np.dot([1.0, float(length)], [float(token), float(attention)])
    return float(np.divide(packing, np.add(padded, packing)))


def r83_recursion(token, attention, packing, length):
    position = token + attention * length

    def search(low, high, left):
        middle = (low + high) / 2
        if left == 0:
            return low
        if (1 - middle) * (position + packing) > position:
            return search(middle, high, left - 1)
        return search(low, middle, left - 1)

    return search(0.0, 1.0, 80)


# ---------------------------------------------------------------------------------------------------------------------
# 8.4
# ---------------------------------------------------------------------------------------------------------------------


def _timed(side):
    return side["compiled"] and side["clock_starts"] == "first call"


def _single(side):
    return len(set(side["seeds"])) < 2


def _found(report, **other):
    """The flaws, with some of the tests replaced."""
    tests = {
        "timed compile": lambda o, t: _timed(o) or _timed(t),
        "other masks": lambda o, t: o["mask_seed"] != t["mask_seed"] or o["mask_rate"] != t["mask_rate"],
        "untuned peer": lambda o, t: t["trials"] < o["trials"],
        "one seed": lambda o, t: _single(o) or _single(t),
        "warm cache": lambda o, t: o["cache"] != t["cache"],
    }
    for key, test in other.items():
        tests[key.replace("_", " ")] = test
    return {name for name, test in tests.items() if test(report["ours"], report["theirs"])}


def w84_timed_ours_only(report):
    return _found(report, timed_compile=lambda o, t: _timed(o))


def w84_timed_theirs_only(report):
    return _found(report, timed_compile=lambda o, t: _timed(t))


def w84_timed_both_excused(report):
    return _found(report, timed_compile=lambda o, t: _timed(o) != _timed(t))


def w84_timed_both_needed(report):
    return _found(report, timed_compile=lambda o, t: _timed(o) and _timed(t))


def w84_timed_not_compiled(report):
    return _found(report, timed_compile=lambda o, t: "first call" in (o["clock_starts"], t["clock_starts"]))


def w84_compiled_is_enough(report):
    return _found(report, timed_compile=lambda o, t: o["compiled"] or t["compiled"])


def w84_one_side_compiled(report):
    return _found(report, timed_compile=lambda o, t: o["compiled"] != t["compiled"])


def w84_timed_across_sides(report):
    return _found(
        report,
        timed_compile=lambda o, t: (
            (o["compiled"] or t["compiled"]) and "first call" in (o["clock_starts"], t["clock_starts"])
        ),
    )


def w84_clocks_differ(report):
    return _found(report, timed_compile=lambda o, t: o["clock_starts"] != t["clock_starts"])


def w84_timed_and_clocks_differ(report):
    return _found(
        report, timed_compile=lambda o, t: (_timed(o) or _timed(t)) and o["clock_starts"] != t["clock_starts"]
    )


def w84_timed_both_compiled_excused(report):
    return _found(
        report, timed_compile=lambda o, t: (_timed(o) or _timed(t)) and not (o["compiled"] and t["compiled"])
    )


def w84_first_step_is_timed(report):
    return _found(
        report, timed_compile=lambda o, t: any(s["compiled"] and s["clock_starts"] == "first step" for s in (o, t))
    )


def w84_warm_cache_needs_no_compiler(report):
    return _found(
        report, timed_compile=lambda o, t: any(_timed(s) and s["cache"] == "cold" for s in (o, t))
    )


def w84_mask_seed_only(report):
    return _found(report, other_masks=lambda o, t: o["mask_seed"] != t["mask_seed"])


def w84_mask_rate_only(report):
    return _found(report, other_masks=lambda o, t: o["mask_rate"] != t["mask_rate"])


def w84_masks_both_differ(report):
    return _found(
        report, other_masks=lambda o, t: o["mask_seed"] != t["mask_seed"] and o["mask_rate"] != t["mask_rate"]
    )


def w84_mask_rate_about_the_same(report):
    return _found(
        report,
        other_masks=lambda o, t: o["mask_seed"] != t["mask_seed"] or abs(o["mask_rate"] - t["mask_rate"]) > 0.1,
    )


def w84_mask_seed_zero_is_missing(report):
    return _found(
        report,
        other_masks=lambda o, t: (
            (o["mask_seed"] and t["mask_seed"] and o["mask_seed"] != t["mask_seed"])
            or o["mask_rate"] != t["mask_rate"]
        ),
    )


def w84_mask_product(report):
    return _found(
        report, other_masks=lambda o, t: o["mask_seed"] * o["mask_rate"] != t["mask_seed"] * t["mask_rate"]
    )


def w84_masks_by_the_seeds_of_runs(report):
    return _found(
        report, other_masks=lambda o, t: set(o["seeds"]) != set(t["seeds"]) or o["mask_rate"] != t["mask_rate"]
    )


def w84_masks_only_if_rate_is_higher(report):
    return _found(
        report, other_masks=lambda o, t: o["mask_seed"] != t["mask_seed"] or o["mask_rate"] < t["mask_rate"]
    )


def w84_trials_differ(report):
    return _found(report, untuned_peer=lambda o, t: o["trials"] != t["trials"])


def w84_trials_reversed(report):
    return _found(report, untuned_peer=lambda o, t: o["trials"] < t["trials"])


def w84_trials_equal_too(report):
    return _found(report, untuned_peer=lambda o, t: t["trials"] <= o["trials"])


def w84_trials_one(report):
    return _found(report, untuned_peer=lambda o, t: t["trials"] <= 1)


def w84_trials_one_against_many(report):
    return _found(report, untuned_peer=lambda o, t: t["trials"] <= 1 < o["trials"])


def w84_trials_less_than_half(report):
    return _found(report, untuned_peer=lambda o, t: 2 * t["trials"] < o["trials"])


def w84_seeds_counted_as_runs(report):
    return _found(report, one_seed=lambda o, t: len(o["seeds"]) == 1 or len(t["seeds"]) == 1)


def w84_one_seed_ours(report):
    return _found(report, one_seed=lambda o, t: _single(o))


def w84_one_seed_theirs(report):
    return _found(report, one_seed=lambda o, t: _single(t))


def w84_one_seed_both_needed(report):
    return _found(report, one_seed=lambda o, t: _single(o) and _single(t))


def w84_one_seed_both_excused(report):
    return _found(report, one_seed=lambda o, t: _single(o) != _single(t))


def w84_one_seed_pooled(report):
    return _found(report, one_seed=lambda o, t: len(set(o["seeds"]) | set(t["seeds"])) < 2)


def w84_any_seed_twice(report):
    return _found(
        report,
        one_seed=lambda o, t: any(len(s["seeds"]) < 2 or len(set(s["seeds"])) < len(s["seeds"]) for s in (o, t)),
    )


def w84_first_seed_is_last(report):
    return _found(report, one_seed=lambda o, t: any(s["seeds"][0] == s["seeds"][-1] for s in (o, t)))


def w84_first_two_seeds(report):
    return _found(
        report,
        one_seed=lambda o, t: any(len(s["seeds"]) == 1 or s["seeds"][0] == s["seeds"][1] for s in (o, t)),
    )


def w84_fewer_than_three_seeds(report):
    return _found(report, one_seed=lambda o, t: min(len(set(o["seeds"])), len(set(t["seeds"]))) < 3)


def w84_fewer_seeds_than_the_other(report):
    return _found(report, one_seed=lambda o, t: len(set(o["seeds"])) != len(set(t["seeds"])))


def w84_seeds_differ(report):
    return _found(report, one_seed=lambda o, t: _single(o) or _single(t) or set(o["seeds"]) != set(t["seeds"]))


def w84_any_warm(report):
    return _found(report, warm_cache=lambda o, t: "warm" in (o["cache"], t["cache"]))


def w84_any_cold(report):
    return _found(report, warm_cache=lambda o, t: "cold" in (o["cache"], t["cache"]))


def w84_both_warm(report):
    return _found(report, warm_cache=lambda o, t: o["cache"] == t["cache"] == "warm")


def w84_ours_warm_only(report):
    return _found(report, warm_cache=lambda o, t: o["cache"] == "warm" and t["cache"] == "cold")


def w84_theirs_warm_only(report):
    return _found(report, warm_cache=lambda o, t: o["cache"] == "cold" and t["cache"] == "warm")


def w84_ours_warm(report):
    return _found(report, warm_cache=lambda o, t: o["cache"] == "warm")


def w84_cache_only_if_compiled(report):
    return _found(
        report, warm_cache=lambda o, t: o["cache"] != t["cache"] and (o["compiled"] or t["compiled"])
    )


def w84_cache_only_if_timed(report):
    return _found(report, warm_cache=lambda o, t: o["cache"] != t["cache"] and (_timed(o) or _timed(t)))


def w84_first_flaw_only(report):
    found = _found(report)
    for name in ("timed compile", "other masks", "untuned peer", "one seed", "warm cache"):
        if name in found:
            return {name}
    return set()


def w84_underscores(report):
    return {name.replace(" ", "_") for name in _found(report)}


def w84_empty_dictionary(report):
    return _found(report) or {}


def w84_none_word(report):
    return _found(report) or {"none"}


def w84_how_many(report):
    return len(_found(report))


def w84_ours_alone(report):
    # reads the own side against fixed ideals, and the rival never
    ours = report["ours"]
    return _found({"ours": ours, "theirs": {**report["theirs"], "compiled": False, "seeds": [0, 1]}})


def w84_all_or_nothing(report):
    full = {"timed compile", "other masks", "untuned peer", "one seed", "warm cache"}
    return full if _found(report) else set()


def r84_ifs(report):
    ours, theirs = report["ours"], report["theirs"]
    found = set()
    for side in (ours, theirs):
        if side["compiled"] and side["clock_starts"] == "first call":
            found.add("timed compile")
        if len(set(side["seeds"])) < 2:
            found.add("one seed")
    if ours["mask_seed"] != theirs["mask_seed"]:
        found.add("other masks")
    if ours["mask_rate"] != theirs["mask_rate"]:
        found.add("other masks")
    if theirs["trials"] < ours["trials"]:
        found.add("untuned peer")
    if ours["cache"] != theirs["cache"]:
        found.add("warm cache")
    return found


def r84_table(report):
    a, b = report["ours"], report["theirs"]
    table = {
        "timed compile": any((s["compiled"], s["clock_starts"]) == (True, "first call") for s in (a, b)),
        "other masks": (a["mask_seed"], a["mask_rate"]) != (b["mask_seed"], b["mask_rate"]),
        "untuned peer": a["trials"] > b["trials"],
        "one seed": min(len(set(a["seeds"])), len(set(b["seeds"]))) <= 1,
        "warm cache": len({a["cache"], b["cache"]}) == 2,
    }
    return {name for name, hit in table.items() if hit}


def r84_generators(report):
    def alone(side):
        if side["clock_starts"] != "first step" and side["compiled"]:
            yield "timed compile"
        if all(seed == side["seeds"][0] for seed in side["seeds"]):
            yield "one seed"

    def together(ours, theirs):
        if any(ours[key] != theirs[key] for key in ("mask_seed", "mask_rate")):
            yield "other masks"
        if not theirs["trials"] >= ours["trials"]:
            yield "untuned peer"
        if sorted((ours["cache"], theirs["cache"])) == ["cold", "warm"]:
            yield "warm cache"

    sides = (report["ours"], report["theirs"])
    return set(itertools.chain(*map(alone, sides), together(*sides)))


def r84_discard(report):
    found = {"timed compile", "other masks", "untuned peer", "one seed", "warm cache"}
    o, t = report["ours"], report["theirs"]
    if not any(s["compiled"] and s["clock_starts"] == "first call" for s in (o, t)):
        found.discard("timed compile")
    if o["mask_seed"] == t["mask_seed"] and o["mask_rate"] == t["mask_rate"]:
        found.discard("other masks")
    if t["trials"] >= o["trials"]:
        found.discard("untuned peer")
    if len(set(o["seeds"])) > 1 and len(set(t["seeds"])) > 1:
        found.discard("one seed")
    if o["cache"] == t["cache"]:
        found.discard("warm cache")
    return found


def r84_numpy(report):
    sides = [report["ours"], report["theirs"]]
    names = np.array(["timed compile", "other masks", "untuned peer", "one seed", "warm cache"])
    compiled = np.array([s["compiled"] for s in sides])
    first_call = np.array([s["clock_starts"] == "first call" for s in sides])
    hits = np.array([
        bool((compiled & first_call).any()),
        sides[0]["mask_seed"] != sides[1]["mask_seed"] or sides[0]["mask_rate"] != sides[1]["mask_rate"],
        sides[1]["trials"] - sides[0]["trials"] < 0,
        min(np.unique(s["seeds"]).size for s in sides) < 2,
        sides[0]["cache"] != sides[1]["cache"],
    ], dtype=bool)
    return set(names[hits].tolist())


def r84_unions(report):
    ours, theirs = report["ours"], report["theirs"]

    def named(name, hit):
        return {name} if hit else set()

    return (
        named("timed compile", _timed(ours) or _timed(theirs))
        | named("other masks", ours["mask_seed"] != theirs["mask_seed"])
        | named("other masks", ours["mask_rate"] != theirs["mask_rate"])
        | named("untuned peer", max(ours["trials"] - theirs["trials"], 0) > 0)
        | named("one seed", _single(ours) or _single(theirs))
        | named("warm cache", (ours["cache"] == "warm") ^ (theirs["cache"] == "warm"))
    )


def r84_recursion(report):
    o, t = report["ours"], report["theirs"]

    def collect(rules):
        if not rules:
            return set()
        (name, hit), *others = rules
        return collect(others) | ({name} if hit else set())

    return collect([
        ("timed compile", o["compiled"] and o["clock_starts"] == "first call"),
        ("timed compile", t["compiled"] and t["clock_starts"] == "first call"),
        ("one seed", len(dict.fromkeys(o["seeds"])) < 2),
        ("one seed", len(dict.fromkeys(t["seeds"])) < 2),
        ("other masks", o["mask_seed"] != t["mask_seed"]),
        ("other masks", o["mask_rate"] != t["mask_rate"]),
        ("untuned peer", o["trials"] > t["trials"]),
        ("warm cache", o["cache"] != t["cache"]),
    ])


# ---------------------------------------------------------------------------------------------------------------------


def _collect(prefix):
    return {
        name[len(prefix):].replace("_", " "): function
        for name, function in list(globals().items())
        if name.startswith(prefix)
    }


WRONG = {
    "operations_a_token": _collect("w81_"),
    "seconds_to": _collect("w82_"),
    "packing_stops_paying": _collect("w83_"),
    "flaws": _collect("w84_"),
}
RIGHT = {
    "operations_a_token": _collect("r81_"),
    "seconds_to": _collect("r82_"),
    "packing_stops_paying": _collect("r83_"),
    "flaws": _collect("r84_"),
}
