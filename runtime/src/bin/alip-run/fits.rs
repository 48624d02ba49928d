//! How large a batch a device has room for. No batch is named whose plan was not made and seen to fit.

use alip_plan::Plan;
use alip_runtime::device::{Device, Free};
use indicatif::HumanBytes;

use crate::{Failure, Outcome};

/// One part in so many of the free memory is left for kernels and for what a driver keeps beside plans.
const LEFT: u64 = 64;

/// Most batches that are tried beyond the first.
const TRIES: u32 = 32;

/// Makes the plan for a batch, or for the spec's own.
pub(crate) type Make<'a> = dyn FnMut(Option<u64>) -> Outcome<Plan> + 'a;

/// A batch and what its plan takes.
#[derive(Clone, Copy)]
struct Tried {
    batch: u64,
    needed: u64,
}

/// Refuses a plan for which there is no room, with the largest batch that has some.
///
/// # Errors
/// There is no room.
pub(crate) fn check(plan: &Plan, device: &dyn Device, make: &mut Make<'_>) -> Outcome<()> {
    let Some(room) = device.room(plan).filter(|room| room.needed > room.bytes) else { return Ok(()) };
    // A plan that is not trained says no batch; the device refuses it.
    let Some(batch) = plan.train.as_ref().map(|train| train.batch) else { return Ok(()) };
    note!("there is no room for a batch of {batch}; looking for the largest that fits");
    let advice = match below(Tried { batch, needed: room.needed }, None, device, make) {
        Ok(Some(fitting)) => format!("the largest batch that fits is {}: --batch {0}", batch_of(&fitting)),
        Ok(None) => "not even a batch of 1 fits".into(),
        Err(_) => "use a smaller --batch".into(),
    };
    Err(Failure::message(format!(
        "{} has no room for `{}` at batch {batch}: the plan needs {}, and {} are free; {advice}",
        device.name(),
        plan.name,
        HumanBytes(room.needed),
        HumanBytes(room.bytes)
    )))
}

/// The plan with the largest batch for which there is room.
///
/// # Errors
/// The device cannot tell, not even one sample fits, or the compiler refuses a batch.
pub(crate) fn largest(device: &dyn Device, make: &mut Make<'_>) -> Outcome<Plan> {
    let mut plan = make(None)?;
    let mut fitting = None;
    loop {
        let untold = || {
            let why = "does not tell how much memory is free; give --batch";
            Failure::message(format!("--largest: device `{}` {why}", device.name()))
        };
        let room = device.room(&plan).ok_or_else(untold)?;
        let tried = Tried { batch: batch_of(&plan), needed: room.needed };
        if !fits(room) {
            let none = || {
                let (name, free) = (&plan.name, HumanBytes(room.bytes));
                Failure::message(format!(
                    "--largest: not even a batch of 1 of `{name}` fits into the {free} that are free"
                ))
            };
            return below(tried, fitting, device, make)?.ok_or_else(none);
        }
        let double = tried.batch.max(1) * 2;
        fitting = Some((tried, plan));
        plan = make(Some(double))?;
    }
}

fn fits(room: Free) -> bool {
    room.needed <= room.bytes - room.bytes / LEFT
}

fn batch_of(plan: &Plan) -> u64 {
    plan.train.as_ref().map_or(0, |train| train.batch)
}

/// The plan with the largest batch that fits below one that does not, if there is any; one that does is given if it is known.
fn below(
    mut beyond: Tried,
    mut fitting: Option<(Tried, Plan)>,
    device: &dyn Device,
    make: &mut Make<'_>,
) -> Outcome<Option<Plan>> {
    for number in 1..=TRIES {
        let known = fitting.as_ref().map_or(Tried { batch: 0, needed: 0 }, |(tried, _)| *tried);
        if beyond.batch - known.batch <= 1 {
            break;
        }
        let Some(free) = fitting.as_ref().and_then(|(_, plan)| device.room(plan)) else {
            // Nothing fits yet: the smallest batch says whether anything does.
            let plan = make(Some(1))?;
            let Some(room) = device.room(&plan).filter(|room| fits(*room)) else { return Ok(None) };
            fitting = Some((Tried { batch: 1, needed: room.needed }, plan));
            continue;
        };
        let batch = guess(known, beyond, free.bytes - free.bytes / LEFT, number);
        let plan = make(Some(batch))?;
        let Some(room) = device.room(&plan) else { break };
        let tried = Tried { batch, needed: room.needed };
        match fits(room) {
            true => fitting = Some((tried, plan)),
            false => beyond = tried,
        }
    }
    Ok(fitting.map(|(_, plan)| plan))
}

/// The next batch to try between one that fits and one that does not. What a plan takes grows nearly evenly with its batch; every
/// third guess halves what is left, in case it does not.
fn guess(known: Tried, beyond: Tried, free: u64, number: u32) -> u64 {
    let share = match number % 3 {
        0 => 0.5,
        _ => free.saturating_sub(known.needed) as f64 / beyond.needed.saturating_sub(known.needed).max(1) as f64,
    };
    let batch = known.batch + ((beyond.batch - known.batch) as f64 * share) as u64;
    batch.clamp(known.batch + 1, beyond.batch - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many guesses find the largest batch that fits, where plans take what `needed` says.
    fn guesses(needed: impl Fn(u64) -> u64, free: u64, beyond: u64) -> u32 {
        let tried = |batch| Tried { batch, needed: needed(batch) };
        let (mut known, mut beyond, mut number) = (tried(1), tried(beyond), 0);
        while beyond.batch - known.batch > 1 {
            number += 1;
            let next = tried(guess(known, beyond, free, number));
            if next.needed <= free { known = next } else { beyond = next }
        }
        assert!(needed(known.batch) <= free && needed(known.batch + 1) > free);
        number
    }

    #[test]
    fn few_guesses_find_the_largest_batch() {
        let even = |batch| 1_000_000 + 777 * batch;
        assert!(guesses(even, even(417), 65_536) <= 3);
        let in_leaps = |batch: u64| 1_000_000 + 777 * batch.next_multiple_of(8);
        assert!(guesses(in_leaps, in_leaps(417), 4096) <= TRIES);
        let steep = |batch: u64| batch * batch * batch;
        assert!(guesses(steep, steep(40), 1 << 16) <= 2 * TRIES);
    }
}
