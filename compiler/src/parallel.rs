//! Independent work on the machine's cores, with results in the order of the items: what comes out does not depend on
//! how many cores there are.

use std::sync::{Mutex, PoisonError};

/// `work` of every item. Items are taken one after the other by as many threads as the machine has cores.
pub(crate) fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if threads <= 1 {
        return items.into_iter().map(work).collect();
    }
    let waiting = Mutex::new(items.into_iter().enumerate());
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, item)) = next() {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_are_in_the_order_of_the_items() {
        let slow_first = |item: u64| {
            std::thread::sleep(std::time::Duration::from_micros(200 / (item + 1)));
            item * 2
        };
        assert_eq!(super::map((0..100).collect(), slow_first), (0..200).step_by(2).collect::<Vec<_>>());
        assert!(super::map(Vec::new(), slow_first).is_empty());
    }
}
