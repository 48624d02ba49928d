//! Which shards and which places of a batch a stream has.

/// How often, at most, a sample of one stream is seen for once of another's: more streams mix better, but shards and places of a
/// batch do not always go into them evenly.
const MOST_UNEVEN: f64 = 1.1;

/// Shards and places of batches, dealt over streams: place `i` of every batch is stream `i mod streams`, and so is shard `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    pub(super) streams: u64,
    batch: u64,
}

impl Deal {
    /// As many streams as asked for, or fewer: each has a shard and a place at least, and gives its samples at most a tenth
    /// oftener than another, as far as shards are of one size.
    pub(super) fn new(asked: u64, shards: u64, batch: u64) -> Deal {
        let most = asked.min(shards).min(batch).max(1);
        let streams = (1..=most).rev().find(|&streams| unevenness(streams, shards, batch) <= MOST_UNEVEN);
        Deal { streams: streams.unwrap_or(1), batch }
    }

    /// Elements of a stream in a batch.
    pub(super) fn share(&self, stream: u64) -> u64 {
        part(self.batch, self.streams, stream)
    }

    /// Stream and element of a global place.
    pub(super) fn element(&self, global: u64) -> (u64, u64) {
        let (batch, place) = (global / self.batch, global % self.batch);
        let stream = place % self.streams;
        (stream, batch * self.share(stream) + place / self.streams)
    }

    /// The global place of an element.
    pub(super) fn global(&self, stream: u64, element: u64) -> u64 {
        let share = self.share(stream);
        element / share * self.batch + element % share * self.streams + stream
    }

    /// The first element of a stream that stands at a global place or behind it.
    pub(super) fn first_from(&self, stream: u64, global: u64) -> u64 {
        let (batch, place) = (global / self.batch, global % self.batch);
        batch * self.share(stream) + place.saturating_sub(stream).div_ceil(self.streams)
    }

    /// The first element of a stream in the batch behind that of an element.
    pub(super) fn behind_batch(&self, stream: u64, element: u64) -> u64 {
        let share = self.share(stream);
        (element / share + 1) * share
    }
}

/// What of `all`, dealt one by one, a stream gets.
fn part(all: u64, streams: u64, stream: u64) -> u64 {
    all / streams + u64::from(stream < all % streams)
}

/// The rate at which the shards of the fastest stream are read, for one of the slowest.
fn unevenness(streams: u64, shards: u64, batch: u64) -> f64 {
    // Shares change where the shards, or the places, no longer go round.
    let kinds = [0, shards % streams, batch % streams];
    let rates = kinds.map(|stream| part(batch, streams, stream) as f64 / part(shards, streams, stream) as f64);
    let [most, least] = [rates.iter().copied().fold(0.0, f64::max), rates.iter().copied().fold(f64::MAX, f64::min)];
    most / least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_as_many_as_are_even() {
        let check = |(asked, shards, batch), expected| {
            let deal = Deal::new(asked, shards, batch);
            assert_eq!(deal.streams, expected, "{asked} streams of {shards} shards in batches of {batch}");
            let fair = |stream| deal.share(stream) as f64 / part(shards, expected, stream) as f64;
            let rates: Vec<f64> = (0..expected).map(fair).collect();
            let most = rates.iter().copied().fold(0.0, f64::max);
            assert!(rates.iter().all(|rate| *rate > 0.0 && most / rate <= MOST_UNEVEN), "{rates:?}");
        };
        check((256, 10_000, 4096), 256);
        check((256, 1_500, 4096), 250);
        check((256, 1_000, 256), 64);
        check((256, 100, 64), 12);
        check((256, 3, 64), 3);
        check((256, 5, 2), 1);
        check((1, 100, 64), 1);
        check((256, 512, 256), 256);
    }

    #[test]
    fn every_place_is_an_element_and_back() {
        for (asked, shards, batch) in [(256, 40, 12), (4, 4, 10), (3, 9, 7), (1, 1, 5)] {
            let deal = Deal::new(asked, shards, batch);
            let mut next = vec![0; deal.streams as usize];
            for global in 0..10 * batch {
                for (stream, next) in (0..).zip(&next) {
                    assert_eq!(deal.first_from(stream, global), *next, "{deal:?}, {stream} from {global}");
                }
                let (stream, element) = deal.element(global);
                assert_eq!(stream, global % batch % deal.streams);
                assert_eq!(element, std::mem::replace(&mut next[stream as usize], element + 1));
                assert_eq!(deal.global(stream, element), global);
                let behind = deal.global(stream, deal.behind_batch(stream, element));
                assert_eq!(behind, (global / batch + 1) * batch + stream);
            }
        }
    }
}
