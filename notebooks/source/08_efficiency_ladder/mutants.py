"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import math

# --- 8.1 -------------------------------------------------------------------------------------------------------------


def _operations(r, *, six=6, twelve=12, gates=None, sparse=None, square=4, dense=True, padding=1, layers=True, heads=1):
    gates = gates or (3 if r["gated"] else 2)
    sparse = r["sparse"] if sparse is None else sparse
    matrices = square * r["hidden"] ** 2 + gates * r["hidden"] * r["inner"]
    share = r["scored"] if sparse else 1.0
    head = heads * share * (dense * r["hidden"] ** 2 + r["vocabulary"] * r["hidden"])
    attention = twelve * (r["layers"] if layers else 1) * r["length"] * r["hidden"]
    return (six * (r["layers"] * matrices + head) + attention) / r["real"] ** padding


def forward_only(r):
    return _operations(r) / 3


def ignores_padding(r):
    return _operations(r, padding=0)


def multiplies_by_the_real_share(r):
    return _operations(r, padding=-1)


def always_sparse(r):
    return _operations(r, sparse=True)


def always_dense(r):
    return _operations(r, sparse=False)


def never_gated(r):
    return _operations(r, gates=2)


def no_attention(r):
    return _operations(r, twelve=0)


def attention_once(r):
    return _operations(r, layers=False)


def one_square_matrix(r):
    return _operations(r, square=1)


def no_dense_layer(r):
    return _operations(r, dense=False)


def head_in_every_layer(r):
    return _operations(r, heads=r["layers"])


# --- 8.2 -------------------------------------------------------------------------------------------------------------


def _line(before, after, loss):
    return before[0] + (after[0] - before[0]) * (before[1] - loss) / (before[1] - after[1])


def first_look(points, loss):
    return next((second for second, now in points if now <= loss), math.inf)


def look_before(points, loss):
    before = points[0][0]
    for second, now in points:
        if now <= loss:
            return before
        before = second
    return math.inf


def never_is_the_end(points, loss):
    return min(_along(points, loss), points[-1][0])


def never_is_none(points, loss):
    found = _along(points, loss)
    return None if found == math.inf else found


def last_time(points, loss):
    found = math.inf
    for (a, high), (b, low) in zip(points, points[1:]):
        if low <= loss < high:
            found = a + (b - a) * (high - loss) / (high - low)
    return found


def strictly_below(points, loss):
    before = None
    for second, now in points:
        if now < loss:
            return second if before is None else _line(before, (second, now), loss)
        before = second, now
    return math.inf


def forgets_the_first(points, loss):
    for (a, high), (b, low) in zip(points, points[1:]):
        if low <= loss:
            return a + (b - a) * (high - loss) / (high - low)
    return math.inf


def wrong_end(points, loss):
    before = None
    for second, now in points:
        if now <= loss:
            return second if before is None else before[0] + second - _line(before, (second, now), loss)
        before = second, now
    return math.inf


def _along(points, loss):
    before = None
    for second, now in points:
        if now <= loss:
            return second if before is None else _line(before, (second, now), loss)
        before = second, now
    return math.inf


# --- 8.3 -------------------------------------------------------------------------------------------------------------


def over_the_work(token, attention, packing, length):
    return packing / (token + attention * length)


def attention_without_length(token, attention, packing, length):
    return packing / (token + attention + packing)


def attention_left_out(token, attention, packing, length):
    return packing / (token + packing)


def real_share(token, attention, packing, length):
    work = token + attention * length
    return work / (work + packing)


def attention_squared(token, attention, packing, length):
    return packing / (token + attention * length**2 + packing)


def in_percent(token, attention, packing, length):
    return 100 * packing / (token + attention * length + packing)


def packs_attention_too(token, attention, packing, length):
    return packing * length / (token + attention * length + packing * length)


# --- 8.4 -------------------------------------------------------------------------------------------------------------


def _flaws(report, *, compile_=None, masks=None, peer=None, seeds=None, cache=None):
    ours, theirs = report["ours"], report["theirs"]
    both = (ours, theirs)
    found = {
        "timed compile": compile_
        or (lambda: any(one["compiled"] and one["clock_starts"] == "first call" for one in both)),
        "other masks": masks or (lambda: any(ours[key] != theirs[key] for key in ("mask_seed", "mask_rate"))),
        "untuned peer": peer or (lambda: theirs["trials"] < ours["trials"]),
        "one seed": seeds or (lambda: any(len(set(one["seeds"])) < 2 for one in both)),
        "warm cache": cache or (lambda: ours["cache"] != theirs["cache"]),
    }
    return {name for name, test in found.items() if test()}


def any_compile(report):
    return _flaws(report, compile_=lambda: any(report[one]["compiled"] for one in report))


def any_first_call(report):
    return _flaws(report, compile_=lambda: any(report[one]["clock_starts"] == "first call" for one in report))


def one_compiles(report):
    return _flaws(report, compile_=lambda: report["ours"]["compiled"] != report["theirs"]["compiled"])


def seeds_of_masks_only(report):
    return _flaws(report, masks=lambda: report["ours"]["mask_seed"] != report["theirs"]["mask_seed"])


def rates_only(report):
    return _flaws(report, masks=lambda: report["ours"]["mask_rate"] != report["theirs"]["mask_rate"])


def unequal_trials(report):
    return _flaws(report, peer=lambda: report["ours"]["trials"] != report["theirs"]["trials"])


def never_tuned(report):
    return _flaws(report, peer=lambda: report["theirs"]["trials"] == 0)


def counts_seeds(report):
    return _flaws(report, seeds=lambda: any(len(report[one]["seeds"]) < 2 for one in report))


def own_seeds_only(report):
    return _flaws(report, seeds=lambda: len(set(report["ours"]["seeds"])) < 2)


def any_warm(report):
    return _flaws(report, cache=lambda: any(report[one]["cache"] == "warm" for one in report))


def ours_warm(report):
    return _flaws(report, cache=lambda: report["ours"]["cache"] == "warm" and report["theirs"]["cache"] == "cold")


def a_list(report):
    return sorted(_flaws(report))


def no_flaw(report):
    return set()


MUTANTS = {
    "operations_a_token": {
        "forward pass only": (forward_only, "forward only"),
        "ignores padding": (ignores_padding, "divide by the share of real tokens"),
        "multiplies by the share of real tokens": (multiplies_by_the_real_share, "not less: divide"),
        "always a sparse head": (always_sparse, "a dense one on every position"),
        "always a dense head": (always_dense, "a dense one on every position"),
        "never a gate": (never_gated, "three matrices"),
        "no attention": (no_attention, "attention's products are missing"),
        "attention in one layer": (attention_once, "attention happens in every layer"),
        "one square matrix a layer": (one_square_matrix, "four matrices"),
        "no dense layer in the head": (no_dense_layer, "dense layer"),
        "a head in every layer": (head_in_every_layer, "the head is there once"),
    },
    "seconds_to": {
        "the first look": (first_look, "go along the line"),
        "the look before": (look_before, ""),
        "never is the end": (never_is_the_end, "float('inf')"),
        "never is None": (never_is_none, "returned None"),
        "the last time": (last_time, ""),
        "strictly below": (strictly_below, ""),
        "forgets the first look": (forgets_the_first, ""),
        "along the line from the wrong end": (wrong_end, ""),
    },
    "packing_stops_paying": {
        "over the work alone": (over_the_work, "belongs below the line"),
        "attention without the length": (attention_without_length, "grows with the length"),
        "attention left out": (attention_left_out, "attention is missing"),
        "the share of real tokens": (real_share, ""),
        "attention squared": (attention_squared, ""),
        "in percent": (in_percent, ""),
        "packing for every pair": (packs_attention_too, ""),
    },
    "flaws": {
        "any compiler": (any_compile, "'timed compile' is not the matter"),
        "any first call": (any_first_call, "'timed compile' is not the matter"),
        "one compiles": (one_compiles, "timed compile"),
        "seeds of masks only": (seeds_of_masks_only, "you missed 'other masks'"),
        "rates of masks only": (rates_only, "you missed 'other masks'"),
        "unequal numbers of trials": (unequal_trials, "'untuned peer' is not the matter"),
        "never tuned": (never_tuned, "you missed 'untuned peer'"),
        "counts seeds": (counts_seeds, "you missed 'one seed'"),
        "own seeds only": (own_seeds_only, "you missed 'one seed'"),
        "any warm cache": (any_warm, "'warm cache' is not the matter"),
        "ours warm only": (ours_warm, "you missed 'warm cache'"),
        "a list": (a_list, "return a set"),
        "no flaw": (no_flaw, "you missed"),
    },
}
