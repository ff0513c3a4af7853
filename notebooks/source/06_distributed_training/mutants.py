"""Named wrong answers to the exercises; every one must be rejected with the words beside it."""

import torch


def _ring(rank, world, parts, exchange, *, first=0, keep=1, turns=-1, add=True):
    parts = [part.clone() for part in parts]
    for turn in range(world + turns):
        arrived = exchange(parts[(rank + first - turn) % world])
        place = (rank + first - turn - 1) % world
        parts[place] = parts[place] + arrived if add else arrived
    return parts[(rank + keep) % world]


def returns_its_own_place(rank, world, parts, exchange):
    return _ring(rank, world, parts, exchange, keep=0)


def one_turn_too_few(rank, world, parts, exchange):
    return _ring(rank, world, parts, exchange, turns=-2)


def one_turn_too_many(rank, world, parts, exchange):
    return _ring(rank, world, parts, exchange, turns=0)


def overwrites_instead_of_adding(rank, world, parts, exchange):
    return _ring(rank, world, parts, exchange, add=False)


def starts_one_part_later(rank, world, parts, exchange):
    return _ring(rank, world, parts, exchange, first=1)


def sends_everything_round(rank, world, parts, exchange):
    total = going = torch.stack(list(parts))
    for _ in range(world - 1):
        going = exchange(going)
        total = total + going
    return total[(rank + 1) % world]


def sends_what_it_had_at_first(rank, world, parts, exchange):
    new = list(parts)
    for turn in range(world - 1):
        place = (rank - turn - 1) % world
        new[place] = parts[place] + exchange(parts[(rank - turn) % world])
    return new[(rank + 1) % world]


def adds_in_place(rank, world, parts, exchange):
    for turn in range(world - 1):
        parts[(rank - turn - 1) % world] += exchange(parts[(rank - turn) % world])
    return parts[(rank + 1) % world]


def first_rank_does_not_send(rank, world, parts, exchange):
    if rank == 0 and world > 1:
        return parts[1]
    return _ring(rank, world, parts, exchange)


def mean_of_means(loss_sum, count, world, total):
    total(count)
    return loss_sum / max(count, 1)


def forgets_the_average(loss_sum, count, world, total):
    return loss_sum / total(count)


def multiplies_twice(loss_sum, count, world, total):
    return loss_sum * world * world / total(count)


def sum_over_tokens(loss_sum, count, world, total):
    total(count)
    return loss_sum * world


def divides_by_its_own_count(loss_sum, count, world, total):
    total(count)
    return loss_sum / count


def skips_the_empty_rank(loss_sum, count, world, total):
    if count == 0:
        return loss_sum * 0
    return loss_sum * world / total(count)


def adds_up_losses(loss_sum, count, world, total):
    return loss_sum * world / total(loss_sum.item())


def asks_twice(loss_sum, count, world, total):
    return loss_sum / total(count) * total(count) / total(count) * world


def loses_the_graph(loss_sum, count, world, total):
    return torch.tensor(loss_sum.item() * world / total(count))


def drops_the_rest(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[: len(batch) // world * world][rank::world]


def drops_the_last_batch(order, batch_size, step, rank, world):
    if (step + 1) * batch_size > len(order):
        return []
    return order[step * batch_size : (step + 1) * batch_size][rank::world]


def repeats_to_fill_up(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    while len(batch) % world:
        batch = batch + batch[:1]
    return batch[rank::world]


def every_rank_has_all(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size]


def batch_size_a_rank(order, batch_size, step, rank, world):
    return order[rank::world][step * batch_size : (step + 1) * batch_size]


def last_rank_takes_the_rest(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share if rank < world - 1 else None]


def rounds_the_share_up(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share = -(-len(batch) // world)
    return batch[rank * share : (rank + 1) * share]


def shuffles_in_place(order, batch_size, step, rank, world):
    order.sort()
    return order[step * batch_size : (step + 1) * batch_size][rank::world]


def ignores_the_order(order, batch_size, step, rank, world):
    return list(range(len(order)))[step * batch_size : (step + 1) * batch_size][rank::world]


def one_moment_only(weights, world, stage):
    return _bytes(weights, world, stage, (4, 4, 4))


def no_gradients(weights, world, stage):
    return _bytes(weights, world, stage, (8, 0, 4))


def weights_first(weights, world, stage):
    return _bytes(weights, world, stage, (4, 4, 8))


def all_or_nothing(weights, world, stage):
    return _bytes(weights, world, 3 if stage else 0)


def one_stage_behind(weights, world, stage):
    return _bytes(weights, world, stage - 1)


def sixteen_bits(weights, world, stage):
    return _bytes(weights, world, stage) / 2


def all_ranks_together(weights, world, stage):
    return 16.0 * weights * world


def _bytes(weights, world, stage, sizes=(8, 4, 4)):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate(sizes))


MUTANTS = {
    "reduce_scatter": {
        "returns its own place": (returns_its_own_place, "it ends with part (rank + 1) % world"),
        "one turn too few": (one_turn_too_few, "rank"),
        "one turn too many": (one_turn_too_many, "rank"),
        "overwrites instead of adding": (overwrites_instead_of_adding, "rank"),
        "starts one part later": (starts_one_part_later, "rank"),
        "sends everything round": (sends_everything_round, "one part at a time"),
        "sends what it had at first": (sends_what_it_had_at_first, "part"),
        "adds in place": (adds_in_place, "in place"),
        "the first rank does not send": (first_rank_does_not_send, "equally often"),
    },
    "rank_loss": {
        "mean of means": (mean_of_means, "the mean of the ranks' means"),
        "forgets that gradients are averaged": (forgets_the_average, "world times too small"),
        "multiplies twice": (multiplies_twice, "world times too large"),
        "sum over tokens": (sum_over_tokens, "those of a sum over tokens"),
        "divides by its own count": (divides_by_its_own_count, "ivide by the count of all ranks"),
        "skips the empty rank": (skips_the_empty_rank, "call total exactly once"),
        "adds up losses": (adds_up_losses, "its own count"),
        "asks twice": (asks_twice, "exactly once"),
        "loses the graph": (loses_the_graph, "lost its graph"),
    },
    "my_rows": {
        "drops the rest": (drops_the_rest, "no reason to lose rows"),
        "drops the last batch": (drops_the_last_batch, "with no rank"),
        "repeats to fill up": (repeats_to_fill_up, "with two ranks"),
        "every rank has all": (every_rank_has_all, "with two ranks"),
        "batch size a rank": (batch_size_a_rank, "global batch"),
        "the last rank takes the rest": (last_rank_takes_the_rest, "differ by one row"),
        "rounds the share up": (rounds_the_share_up, "differ by one row"),
        "shuffles in place": (shuffles_in_place, "in place"),
        "ignores the order": (ignores_the_order, "rows"),
    },
    "bytes_a_rank": {
        "one moment only": (one_moment_only, "AdamW keeps two numbers a weight"),
        "no gradients": (no_gradients, "gradients are missing"),
        "weights first": (weights_first, "weights come last"),
        "all or nothing": (all_or_nothing, "everything is sharded at stage 3 only"),
        "one stage behind": (one_stage_behind, "one stage behind"),
        "sixteen bits": (sixteen_bits, "not 2"),
        "all ranks together": (all_ranks_together, "all ranks together"),
    },
}
