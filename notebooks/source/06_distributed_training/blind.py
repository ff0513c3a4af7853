import functools
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import torch


# 6.1 ------------------------------------------------------------------
def w61_adds_into_parts(rank, world, parts, exchange):
    for turn in range(world - 1):
        parts[(rank - turn - 1) % world] += exchange(parts[(rank - turn) % world])
    return parts[(rank + 1) % world]


def w61_replaces_in_the_list(rank, world, parts, exchange):
    for turn in range(world - 1):
        here = (rank - turn - 1) % world
        parts[here] = parts[here] + exchange(parts[(rank - turn) % world])
    return parts[(rank + 1) % world]


def w61_pops_parts(rank, world, parts, exchange):
    if world == 1:
        return parts[0].clone()
    order = [(rank - turn) % world for turn in range(world)]
    own = dict(enumerate(parts))
    going = own[order[0]]
    for number in order[1:]:
        going = own[number] + exchange(going)
    while len(parts) > 1:
        parts.pop()
    return going


def w61_sends_own_parts_only(rank, world, parts, exchange):
    result = parts[(rank + 1) % world].clone()
    for turn in range(world - 1):
        arrived = exchange(parts[(rank - turn) % world])
        if (rank - turn - 1) % world == (rank + 1) % world:
            result = result + arrived
    return result


def w61_one_turn_too_many(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going


def w61_at_least_one_turn(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(max(1, world - 1)):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going


def w61_one_turn_too_few(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 2):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going


def w61_ends_at_part_rank(rank, world, parts, exchange):
    going = parts[(rank - 1) % world].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn - 2) % world] + exchange(going)
    return going


def w61_upwards(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank + turn + 1) % world] + exchange(going)
    return going


def w61_adds_the_part_it_sent(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn) % world] + exchange(going)
    return going


def w61_not_its_own_at_last(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = exchange(going)
        if turn < world - 2:
            going = going + parts[(rank - turn - 1) % world]
    return going


def w61_own_twice_at_last(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going + parts[(rank + 1) % world]


def w61_nothing_alone(rank, world, parts, exchange):
    result = None
    going = parts[rank]
    for turn in range(world - 1):
        result = going = parts[(rank - turn - 1) % world] + exchange(going)
    return result


def w61_zeros_alone(rank, world, parts, exchange):
    result = torch.zeros_like(parts[0])
    going = parts[rank]
    for turn in range(world - 1):
        result = going = parts[(rank - turn - 1) % world] + exchange(going)
    return result


def w61_mean(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going / world


def w61_halves_on_the_way(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = torch.stack([parts[(rank - turn - 1) % world], exchange(going)]).mean(0)
    return going * world


def w61_all_parts_each_time(rank, world, parts, exchange):
    going = torch.stack(list(parts))
    total = going
    for _ in range(world - 1):
        going = exchange(going)
        total = total + going
    return total[(rank + 1) % world]


def w61_one_element_each_time(rank, world, parts, exchange):
    return torch.stack(
        [
            functools.reduce(
                lambda going, turn: parts[(rank - turn - 1) % world].flatten()[place] + exchange(going),
                range(world - 1),
                parts[rank].flatten()[place],
            )
            for place in range(parts[0].numel())
        ]
    ).reshape(parts[0].shape)


def w61_goes_on_to_all_reduce(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    result = going
    for _ in range(world - 1):
        going = exchange(going)
    return result


def w61_last_rank_saves_a_call(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        if rank == world - 1 and turn == world - 2:
            return going
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return going


def w61_zeros_are_not_sent(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        own = parts[(rank - turn - 1) % world]
        going = own + exchange(going) if bool(going.any()) else own.clone()
    return going


def w61_with_its_number(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world] + exchange(going)
    return (rank + 1) % world, going


def w61_list_of_parts(rank, world, parts, exchange):
    sums = [part.clone() for part in parts]
    for turn in range(world - 1):
        here = (rank - turn - 1) % world
        sums[here] = sums[here] + exchange(sums[(rank - turn) % world])
    return sums


def w61_returns_part_rank(rank, world, parts, exchange):
    sums = [part.clone() for part in parts]
    for turn in range(world - 1):
        here = (rank - turn - 1) % world
        sums[here] = sums[here] + exchange(sums[(rank - turn) % world])
    return sums[rank]


def w61_only_vectors(rank, world, parts, exchange):
    going = parts[rank].clone()
    for turn in range(world - 1):
        arrived = exchange(going)
        own = parts[(rank - turn - 1) % world]
        going = torch.tensor([a.item() + b.item() for a, b in zip(own, arrived)], dtype=own.dtype)
    return going


def w61_flat(rank, world, parts, exchange):
    going = parts[rank].flatten()
    for turn in range(world - 1):
        going = parts[(rank - turn - 1) % world].flatten() + exchange(going)
    return going.clone()


def w61_no_modulo_at_the_end(rank, world, parts, exchange):
    sums = [part.clone() for part in parts]
    for turn in range(world - 1):
        here = (rank - turn - 1) % world
        sums[here] = sums[here] + exchange(sums[(rank - turn) % world])
    return sums[min(rank + 1, world - 1)]


def w61_sum_of_own_parts(rank, world, parts, exchange):
    going = total = sum(parts)
    for _ in range(world - 1):
        going = exchange(going)
        total = total + going
    return total


def w61_two_ranks(rank, world, parts, exchange):
    if world == 1:
        return parts[0].clone()
    return parts[1 - rank if world == 2 else (rank + 1) % world] + exchange(parts[rank])


def r61_copies_in_place(rank, world, parts, exchange):
    sums = [part.clone() for part in parts]
    for turn in range(world - 1):
        sums[(rank - turn - 1) % world] += exchange(sums[(rank - turn) % world])
    return sums[(rank + 1) % world]


def r61_dictionary(rank, world, parts, exchange):
    sums = {rank: parts[rank].clone()}
    for turn in range(world - 1):
        here = (rank - turn - 1) % world
        sums[here] = torch.add(exchange(sums[(rank - turn) % world]), parts[here])
    return sums[(rank + 1) % world]


def r61_negative_indices(rank, world, parts, exchange):
    going = parts[rank].clone()
    for back in range(1, world):
        going = exchange(going) + parts[rank - back]
    return going


def r61_reduce(rank, world, parts, exchange):
    numbers = itertools.islice(itertools.cycle(range(world - 1, -1, -1)), world - 1 - rank, 2 * world - 1 - rank)
    own = [parts[number] for number in numbers]
    return functools.reduce(lambda going, mine: mine + exchange(going), own[1:], own[0].clone())


def r61_recursion(rank, world, parts, exchange):
    def made(turns):
        own = parts[(rank - turns) % world]
        return own + exchange(made(turns - 1)) if turns else own.clone()

    return made(world - 1)


def r61_rotated_stack(rank, world, parts, exchange):
    own = torch.stack(list(parts)).flip(0).roll(rank + 1, 0)
    for turn in range(world - 1):
        own[turn + 1] = own[turn + 1] + exchange(own[turn].clone())
    return own[-1].clone()


def r61_while(rank, world, parts, exchange):
    number, going = rank, parts[rank].clone()
    while number != (rank + 1) % world:
        arrived = exchange(going)
        number = number - 1 if number > 0 else world - 1
        going = torch.stack([parts[number], arrived]).sum(0, dtype=parts[number].dtype)
    return going


# 6.2 ------------------------------------------------------------------
def w62_mean_of_means(loss_sum, count, world, total):
    total(count)
    return loss_sum / max(count, 1)


def w62_own_mean_no_call(loss_sum, count, world, total):
    return loss_sum / max(count, 1)


def w62_no_world(loss_sum, count, world, total):
    return loss_sum / total(count)


def w62_divided_by_world(loss_sum, count, world, total):
    return loss_sum / total(count) / world


def w62_world_twice(loss_sum, count, world, total):
    return loss_sum * world * world / total(count)


def w62_own_count(loss_sum, count, world, total):
    total(count)
    return loss_sum * world / max(count, 1)


def w62_empty_rank_does_not_call(loss_sum, count, world, total):
    if count == 0:
        return loss_sum
    return loss_sum * world / total(count)


def w62_alone_does_not_call(loss_sum, count, world, total):
    if world == 1:
        return loss_sum / count
    return loss_sum * world / total(count)


def w62_calls_twice(loss_sum, count, world, total):
    if total(count) == 0:
        return loss_sum
    return loss_sum * world / total(count)


def w62_counts_the_ranks(loss_sum, count, world, total):
    return loss_sum * total(1) / total(count)


def w62_full_ranks_only(loss_sum, count, world, total):
    return loss_sum * total(1 if count else 0) / total(count)


def w62_empty_counts_one(loss_sum, count, world, total):
    return loss_sum * world / total(max(count, 1))


def w62_plus_one(loss_sum, count, world, total):
    return loss_sum * world / (total(count) + 1)


def w62_epsilon(loss_sum, count, world, total):
    return loss_sum * world / (total(count) + 0.01)


def w62_own_mean_weighted(loss_sum, count, world, total):
    return loss_sum / torch.tensor(float(count)) * (count * world / total(count))


def w62_global_mean_without_graph(loss_sum, count, world, total):
    both = total(loss_sum.item()) / total(count)
    return torch.tensor(both, requires_grad=True)


def w62_no_graph(loss_sum, count, world, total):
    return torch.tensor(loss_sum.item() * world / total(count))


def w62_a_float(loss_sum, count, world, total):
    return loss_sum.item() * world / total(count)


def w62_detached(loss_sum, count, world, total):
    return loss_sum.detach() * world / total(count)


def w62_empty_rank_zero_without_graph(loss_sum, count, world, total):
    everywhere = total(count)
    if count == 0:
        return torch.zeros(())
    return loss_sum * world / everywhere


def w62_empty_rank_returns_none(loss_sum, count, world, total):
    everywhere = total(count)
    return loss_sum * world / everywhere if count else None


def w62_whole_mean_count(loss_sum, count, world, total):
    return loss_sum / max(total(count) // world, 1)


def w62_whole_share_of_count(loss_sum, count, world, total):
    return loss_sum / max(total(count // world), 1)


def w62_floor(loss_sum, count, world, total):
    return loss_sum * world // total(count)


def w62_sum_of_losses(loss_sum, count, world, total):
    return loss_sum * world / total(loss_sum.item())


def w62_count_times_world(loss_sum, count, world, total):
    total(count)
    return loss_sum / max(count * world, 1)


def w62_only_where_unequal(loss_sum, count, world, total):
    everywhere = total(count)
    if count > everywhere / world:
        return loss_sum * world / everywhere
    return loss_sum / max(count, 1)


def w62_two_ranks(loss_sum, count, world, total):
    return loss_sum * 2 / total(count)


def w62_tuple(loss_sum, count, world, total):
    everywhere = total(count)
    return loss_sum * world / everywhere, everywhere


def w62_calls_backward_itself(loss_sum, count, world, total):
    loss = loss_sum * world / total(count)
    loss.backward()
    return loss


def r62_scale_first(loss_sum, count, world, total):
    scale = world / float(total(count))
    return loss_sum.mul(scale)


def r62_mean_count(loss_sum, count, world, total):
    return loss_sum / (total(count) / world)


def r62_summed_in_a_loop(loss_sum, count, world, total):
    everywhere = total(count)
    loss = torch.zeros_like(loss_sum)
    for _ in range(world):
        loss = loss + loss_sum / everywhere
    return loss


def r62_empty_rank_apart(loss_sum, count, world, total):
    everywhere = total(count)
    if count == 0:
        return loss_sum
    mean = loss_sum / count
    return mean * (count / everywhere) * world


def r62_torch_div(loss_sum, count, world, total):
    return torch.div(torch.mul(loss_sum, world), total(float(count)))


def r62_expand(loss_sum, count, world, total):
    return (loss_sum.expand(world) / total(count)).sum()


# 6.3 ------------------------------------------------------------------
def w63_stride_over_the_epoch(order, batch_size, step, rank, world):
    mine = batch_size // world
    return order[rank::world][step * mine : (step + 1) * mine]


def w63_chunk_floor(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def w63_chunk_ceil(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share = math.ceil(len(batch) / world)
    return batch[rank * share : (rank + 1) * share]


def w63_torch_chunk(order, batch_size, step, rank, world):
    chunks = torch.tensor(order[step * batch_size : (step + 1) * batch_size]).chunk(world)
    return chunks[rank].tolist() if rank < len(chunks) else []


def w63_last_takes_the_rest(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share = len(batch) // world
    return batch[rank * share :] if rank == world - 1 else batch[rank * share : (rank + 1) * share]


def w63_bounds_of_a_full_batch(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[rank * batch_size // world : (rank + 1) * batch_size // world]


def w63_batch_for_each_rank(order, batch_size, step, rank, world):
    first = (step * world + rank) * batch_size
    return order[first : first + batch_size]


def w63_everybody_all(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size]


def w63_drops_last_batch(order, batch_size, step, rank, world):
    if (step + 1) * batch_size > len(order):
        return []
    return order[step * batch_size : (step + 1) * batch_size][rank::world]


def w63_fills_last_batch(order, batch_size, step, rank, world):
    batch = [order[place % len(order)] for place in range(step * batch_size, (step + 1) * batch_size)]
    return batch[rank::world]


def w63_repeats_to_equal_shares(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    while len(batch) % world:
        batch = [*batch, batch[0]]
    return batch[rank::world]


def w63_drops_to_equal_shares(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[: len(batch) - len(batch) % world][rank::world]


def w63_nobody_without(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[rank::world] or batch[:1]


def w63_by_row_number(order, batch_size, step, rank, world):
    return [row for row in order[step * batch_size : (step + 1) * batch_size] if row % world == rank]


def w63_places_for_rows(order, batch_size, step, rank, world):
    return list(range(step * batch_size, min((step + 1) * batch_size, len(order))))[rank::world]


def w63_sorted_epoch(order, batch_size, step, rank, world):
    return sorted(order)[step * batch_size : (step + 1) * batch_size][rank::world]


def w63_steps_from_one(order, batch_size, step, rank, world):
    return order[(step - 1) * batch_size : step * batch_size][rank::world]


def w63_ranks_from_one(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size][rank + 1 :: world]


def w63_one_short(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size - 1][rank::world]


def w63_one_long(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size + 1][rank::world]


def w63_index_error_at_the_end(order, batch_size, step, rank, world):
    return [order[place] for place in range(step * batch_size + rank, (step + 1) * batch_size, world)]


def w63_index_error_on_an_empty_rank(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    mine = [batch[rank]]
    mine.extend(batch[rank + world :: world])
    return mine


def w63_takes_order_apart(order, batch_size, step, rank, world):
    del order[: step * batch_size]
    return order[:batch_size][rank::world]


def w63_sorts_order(order, batch_size, step, rank, world):
    mine = order[step * batch_size : (step + 1) * batch_size][rank::world]
    order.sort()
    return mine


def w63_own_shuffle(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return random.sample(batch, len(batch))[rank::world]


def w63_tuple(order, batch_size, step, rank, world):
    return tuple(order[step * batch_size : (step + 1) * batch_size][rank::world])


def w63_array(order, batch_size, step, rank, world):
    return np.array(order[step * batch_size : (step + 1) * batch_size])[rank::world]


def w63_generator(order, batch_size, step, rank, world):
    return (row for row in order[step * batch_size : (step + 1) * batch_size][rank::world])


def w63_none_when_empty(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size][rank::world] or None


def w63_offset_by_the_step(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[(rank + step) :: world]


def w63_share_for_small_batches(order, batch_size, step, rank, world):
    share = max(1, batch_size // world)
    first = step * batch_size + rank * share
    return order[first : first + share]


def w63_only_first_rank_takes_the_rest(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    share, rest = divmod(len(batch), world)
    return batch[: share + rest] if rank == 0 else batch[rest + rank * share : rest + (rank + 1) * share]


def r63_one_slice(order, batch_size, step, rank, world):
    return order[step * batch_size + rank : (step + 1) * batch_size : world]


def r63_loop(order, batch_size, step, rank, world):
    mine = []
    for place in range(step * batch_size, min((step + 1) * batch_size, len(order))):
        if (place - step * batch_size) % world == rank:
            mine.append(order[place])
    return mine


def r63_place_in_the_epoch(order, batch_size, step, rank, world):
    last = min((step + 1) * batch_size, len(order))
    return [order[place] for place in range(step * batch_size, last) if place % world == rank]


def r63_array_split(order, batch_size, step, rank, world):
    batch = np.array(order[step * batch_size : (step + 1) * batch_size], dtype=np.int64)
    return np.array_split(batch, world)[rank].tolist()


def r63_tensor_split(order, batch_size, step, rank, world):
    batch = torch.tensor(order[step * batch_size : (step + 1) * batch_size], dtype=torch.int64)
    return torch.tensor_split(batch, world)[rank].tolist()


def r63_proportional_bounds(order, batch_size, step, rank, world):
    batch = order[step * batch_size : (step + 1) * batch_size]
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]


def r63_from_the_back(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size][::-1][rank::world]


def r63_turns_with_the_step(order, batch_size, step, rank, world):
    return order[step * batch_size : (step + 1) * batch_size][(rank + step) % world :: world]


def r63_dealt_like_cards(order, batch_size, step, rank, world):
    hands = {one: [] for one in range(world)}
    batch = itertools.islice(order, step * batch_size, (step + 1) * batch_size)
    for row, one in zip(batch, itertools.cycle(range(world))):
        hands[one].append(row)
    return hands[rank]


# 6.4 ------------------------------------------------------------------
def w64_whole_bytes(weights, world, stage):
    total = 0
    for level, size in enumerate((8, 4, 4)):
        total += weights * size // (world if stage > level else 1)
    return total


def w64_whole_weights(weights, world, stage):
    total = 0
    for level, size in enumerate((8, 4, 4)):
        total += weights // (world if stage > level else 1) * size
    return total


def w64_rounded_up(weights, world, stage):
    return math.ceil(sum(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 4, 4))))


def w64_weights_first(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((4, 4, 8)))


def w64_gradients_first(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((4, 8, 4)))


def w64_all_from_stage_1(weights, world, stage):
    return 16 * weights / (world if stage else 1)


def w64_one_state(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((4, 4, 4)))


def w64_three_states(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((12, 4, 4)))


def w64_half_precision(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 2, 2)))


def w64_numbers_for_bytes(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((2, 1, 1)))


def w64_only_that_stage(weights, world, stage):
    return sum(weights * size / (world if stage == level else 1) for level, size in ((1, 8), (2, 4), (3, 4)))


def w64_one_stage_early(weights, world, stage):
    return sum(weights * size / (world if stage >= level else 1) for level, size in enumerate((8, 4, 4)))


def w64_one_stage_late(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in ((1, 8), (2, 4), (3, 4)))


def w64_stage_3_like_2(weights, world, stage):
    return 16 * weights - (0, 8, 12, 12)[stage] * weights * (1 - 1 / world)


def w64_stage_2_gradients_freed(weights, world, stage):
    if stage == 2:
        return weights * 4 + weights * 8 / world
    return 16 * weights - (0, 8, 12, 16)[stage] * weights * (1 - 1 / world)


def w64_stage_2_without_state(weights, world, stage):
    if stage == 2:
        return weights * 12 + weights * 4 / world
    return 16 * weights - (0, 8, 12, 16)[stage] * weights * (1 - 1 / world)


def w64_stage_3_gathers(weights, world, stage):
    full = sum(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 4, 4)))
    return full + (4 * weights if stage == 3 else 0)


def w64_all_ranks(weights, world, stage):
    return world * sum(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 4, 4)))


def w64_world_to_the_stage(weights, world, stage):
    return 16 * weights / world**stage


def w64_saved(weights, world, stage):
    return (0, 8, 12, 16)[stage] * weights * (1 - 1 / world)


def w64_sharded_only(weights, world, stage):
    return (0, 8, 12, 16)[stage] * weights / world if stage else 16 * weights


def w64_world_minus_one(weights, world, stage):
    shared = max(world - 1, 1)
    return sum(weights * size / (shared if stage > level else 1) for level, size in enumerate((8, 4, 4)))


def w64_gigabytes(weights, world, stage):
    return sum(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 4, 4))) / 1e9


def w64_eight_ranks(weights, world, stage):
    return sum(weights * size / (8 if stage > level else 1) for level, size in enumerate((8, 4, 4)))


def w64_three_numbers(weights, world, stage):
    return tuple(weights * size / (world if stage > level else 1) for level, size in enumerate((8, 4, 4)))


def w64_half_of_the_state(weights, world, stage):
    state = 4 * weights + 4 * weights / (world if stage >= 1 else 1)
    return state + weights * 4 / (world if stage >= 2 else 1) + weights * 4 / (world if stage >= 3 else 1)


def r64_cases(weights, world, stage):
    if stage == 0:
        return 16 * weights
    if stage == 1:
        return 8 * weights + 8 * weights / world
    if stage == 2:
        return 4 * weights + 12 * weights / world
    return 16 * weights / world


def r64_saved_share(weights, world, stage):
    return 16 * weights - (0, 8, 12, 16)[stage] * weights * (world - 1) / world


def r64_numpy(weights, world, stage):
    sizes = np.array([8.0, 4.0, 4.0])
    shares = np.where(np.arange(3) < stage, 1 / world, 1.0)
    return float(weights * (sizes @ shares))


def r64_named_terms(weights, world, stage):
    held = {"weights": 4 * weights, "gradients": 4 * weights, "first moment": 4 * weights, "second moment": 4 * weights}
    sharded = {1: ("first moment", "second moment"), 2: ("gradients",), 3: ("weights",)}
    for level in range(1, stage + 1):
        for name in sharded[level]:
            held[name] /= world
    return sum(held.values())


def r64_fraction(weights, world, stage):
    whole, cut = ((16, 0), (8, 8), (4, 12), (0, 16))[stage]
    return float(Fraction(weights) * (whole + Fraction(cut, world)))


def r64_recursion(weights, world, stage):
    if stage == 0:
        return 16.0 * weights
    part = weights * (8 if stage == 1 else 4)
    return r64_recursion(weights, world, stage - 1) - part + part / world


def r64_torch(weights, world, stage):
    held = torch.full((4,), 4 * float(weights), dtype=torch.float64)  # state, state, gradients, weights
    held[: (0, 2, 3, 4)[stage]] /= world
    return held.sum().item()


WRONG = {
    "reduce_scatter": {
        "adds into parts": w61_adds_into_parts,
        "replaces in the list": w61_replaces_in_the_list,
        "pops parts": w61_pops_parts,
        "sends own parts only": w61_sends_own_parts_only,
        "one turn too many": w61_one_turn_too_many,
        "at least one turn": w61_at_least_one_turn,
        "one turn too few": w61_one_turn_too_few,
        "ends at part rank": w61_ends_at_part_rank,
        "upwards": w61_upwards,
        "adds the part it sent": w61_adds_the_part_it_sent,
        "not its own at last": w61_not_its_own_at_last,
        "own twice at last": w61_own_twice_at_last,
        "nothing alone": w61_nothing_alone,
        "zeros alone": w61_zeros_alone,
        "mean": w61_mean,
        "halves on the way": w61_halves_on_the_way,
        "all parts each time": w61_all_parts_each_time,
        "one element each time": w61_one_element_each_time,
        "goes on to all reduce": w61_goes_on_to_all_reduce,
        "last rank saves a call": w61_last_rank_saves_a_call,
        "zeros are not sent": w61_zeros_are_not_sent,
        "with its number": w61_with_its_number,
        "list of parts": w61_list_of_parts,
        "returns part rank": w61_returns_part_rank,
        "only vectors": w61_only_vectors,
        "flat": w61_flat,
        "no modulo at the end": w61_no_modulo_at_the_end,
        "sum of own parts": w61_sum_of_own_parts,
        "two ranks": w61_two_ranks,
    },
    "rank_loss": {
        "mean of means": w62_mean_of_means,
        "own mean no call": w62_own_mean_no_call,
        "no world": w62_no_world,
        "divided by world": w62_divided_by_world,
        "world twice": w62_world_twice,
        "own count": w62_own_count,
        "empty rank does not call": w62_empty_rank_does_not_call,
        "alone does not call": w62_alone_does_not_call,
        "calls twice": w62_calls_twice,
        "counts the ranks": w62_counts_the_ranks,
        "full ranks only": w62_full_ranks_only,
        "empty counts one": w62_empty_counts_one,
        "plus one": w62_plus_one,
        "epsilon": w62_epsilon,
        "own mean weighted": w62_own_mean_weighted,
        "global mean without graph": w62_global_mean_without_graph,
        "no graph": w62_no_graph,
        "a float": w62_a_float,
        "detached": w62_detached,
        "empty rank zero without graph": w62_empty_rank_zero_without_graph,
        "empty rank returns none": w62_empty_rank_returns_none,
        "whole mean count": w62_whole_mean_count,
        "whole share of count": w62_whole_share_of_count,
        "floor": w62_floor,
        "sum of losses": w62_sum_of_losses,
        "count times world": w62_count_times_world,
        "only where unequal": w62_only_where_unequal,
        "two ranks": w62_two_ranks,
        "tuple": w62_tuple,
        "calls backward itself": w62_calls_backward_itself,
    },
    "my_rows": {
        "stride over the epoch": w63_stride_over_the_epoch,
        "chunk floor": w63_chunk_floor,
        "chunk ceil": w63_chunk_ceil,
        "torch chunk": w63_torch_chunk,
        "last takes the rest": w63_last_takes_the_rest,
        "bounds of a full batch": w63_bounds_of_a_full_batch,
        "batch for each rank": w63_batch_for_each_rank,
        "everybody all": w63_everybody_all,
        "drops last batch": w63_drops_last_batch,
        "fills last batch": w63_fills_last_batch,
        "repeats to equal shares": w63_repeats_to_equal_shares,
        "drops to equal shares": w63_drops_to_equal_shares,
        "nobody without": w63_nobody_without,
        "by row number": w63_by_row_number,
        "places for rows": w63_places_for_rows,
        "sorted epoch": w63_sorted_epoch,
        "steps from one": w63_steps_from_one,
        "ranks from one": w63_ranks_from_one,
        "one short": w63_one_short,
        "one long": w63_one_long,
        "index error at the end": w63_index_error_at_the_end,
        "index error on an empty rank": w63_index_error_on_an_empty_rank,
        "takes order apart": w63_takes_order_apart,
        "sorts order": w63_sorts_order,
        "own shuffle": w63_own_shuffle,
        "tuple": w63_tuple,
        "array": w63_array,
        "generator": w63_generator,
        "none when empty": w63_none_when_empty,
        "offset by the step": w63_offset_by_the_step,
        "share for small batches": w63_share_for_small_batches,
        "only first rank takes the rest": w63_only_first_rank_takes_the_rest,
    },
    "bytes_a_rank": {
        "whole bytes": w64_whole_bytes,
        "whole weights": w64_whole_weights,
        "rounded up": w64_rounded_up,
        "weights first": w64_weights_first,
        "gradients first": w64_gradients_first,
        "all from stage 1": w64_all_from_stage_1,
        "one state": w64_one_state,
        "three states": w64_three_states,
        "half precision": w64_half_precision,
        "numbers for bytes": w64_numbers_for_bytes,
        "only that stage": w64_only_that_stage,
        "one stage early": w64_one_stage_early,
        "one stage late": w64_one_stage_late,
        "stage 3 like 2": w64_stage_3_like_2,
        "stage 2 gradients freed": w64_stage_2_gradients_freed,
        "stage 2 without state": w64_stage_2_without_state,
        "stage 3 gathers": w64_stage_3_gathers,
        "all ranks": w64_all_ranks,
        "world to the stage": w64_world_to_the_stage,
        "saved": w64_saved,
        "sharded only": w64_sharded_only,
        "world minus one": w64_world_minus_one,
        "gigabytes": w64_gigabytes,
        "eight ranks": w64_eight_ranks,
        "three numbers": w64_three_numbers,
        "half of the state": w64_half_of_the_state,
    },
}
RIGHT = {
    "reduce_scatter": {
        "copies in place": r61_copies_in_place,
        "dictionary": r61_dictionary,
        "negative indices": r61_negative_indices,
        "reduce": r61_reduce,
        "recursion": r61_recursion,
        "rotated stack": r61_rotated_stack,
        "while": r61_while,
    },
    "rank_loss": {
        "scale first": r62_scale_first,
        "mean count": r62_mean_count,
        "summed in a loop": r62_summed_in_a_loop,
        "empty rank apart": r62_empty_rank_apart,
        "torch div": r62_torch_div,
        "expand": r62_expand,
    },
    "my_rows": {
        "one slice": r63_one_slice,
        "loop": r63_loop,
        "place in the epoch": r63_place_in_the_epoch,
        "array split": r63_array_split,
        "tensor split": r63_tensor_split,
        "proportional bounds": r63_proportional_bounds,
        "from the back": r63_from_the_back,
        "turns with the step": r63_turns_with_the_step,
        "dealt like cards": r63_dealt_like_cards,
    },
    "bytes_a_rank": {
        "cases": r64_cases,
        "saved share": r64_saved_share,
        "numpy": r64_numpy,
        "named terms": r64_named_terms,
        "fraction": r64_fraction,
        "recursion": r64_recursion,
        "torch": r64_torch,
    },
}
