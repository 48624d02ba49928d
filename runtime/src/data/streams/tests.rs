use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::super::source::{ShardError, ShardReader};
use super::*;

/// Shards that are made up: sample `j` of shard `i` has the labels `shard` and `sample`.
struct Made {
    /// How many samples each has.
    truth: Vec<u64>,
    known: Vec<OnceLock<u64>>,
    streams: u64,
    /// The sample from which on a shard is damaged.
    damaged: BTreeMap<usize, u64>,
    opened: Mutex<BTreeSet<usize>>,
}

struct Reader {
    shard: usize,
    next: u64,
    len: u64,
    damaged: Option<u64>,
}

impl ShardReader for Reader {
    fn next(&mut self) -> Result<Option<Result<RawSample, SampleError>>, ShardError> {
        if self.damaged.is_some_and(|from| self.next >= from) {
            return Err(ShardError::Damaged("nothing after byte 7".into()));
        }
        if self.next == self.len {
            return Ok(None);
        }
        let labels = [("shard".into(), self.shard as i64), ("sample".into(), self.next as i64)].into();
        let fields = [("jpeg".into(), crate::data::Field::Encoded(vec![0; 100]))].into();
        self.next += 1;
        Ok(Some(Ok(RawSample { fields, labels })))
    }

    fn skip(&mut self, samples: u64) -> Result<u64, ShardError> {
        for skipped in 0..samples {
            if self.next()?.is_none() {
                return Ok(skipped);
            }
        }
        Ok(samples)
    }
}

impl Sequence for Made {
    fn shards(&self) -> usize {
        self.truth.len()
    }
    fn streams(&self) -> u64 {
        self.streams
    }
    fn size(&self, shard: usize) -> Option<u64> {
        self.known[shard].get().copied()
    }
    fn learn(&self, shard: usize, samples: u64) {
        self.known[shard].set(samples).expect("learnt once");
    }
    fn open(&self, shard: usize) -> Result<Box<dyn ShardReader>, ShardError> {
        self.opened.lock().unwrap().insert(shard);
        let damaged = self.damaged.get(&shard).copied();
        Ok(Box::new(Reader { shard, next: 0, len: self.truth[shard], damaged }))
    }
    fn path(&self, shard: usize) -> PathBuf {
        format!("{shard}.tar").into()
    }
}

impl Made {
    fn new(truth: Vec<u64>, streams: u64, are_known: bool) -> Made {
        let known = |size: &u64| if are_known { OnceLock::from(*size) } else { OnceLock::new() };
        let known = truth.iter().map(known).collect();
        Made { truth, known, streams, damaged: BTreeMap::new(), opened: Mutex::default() }
    }
}

fn open(source: &Arc<Made>, batch: u64, start: u64, mixed: Option<u64>) -> Streams {
    let options = Options { seed: 7, mixed, batch, start };
    Streams::new(source.clone(), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Shard and sample.
type Which = (i64, i64);

fn which(streams: &Streams, global: u64) -> Which {
    let sample = streams.get(global, false).unwrap_or_else(|error| panic!("{error}"));
    let sample = sample.unwrap_or_else(|error| panic!("{global}: {error}"));
    (sample.labels["shard"], sample.labels["sample"])
}

/// Unequal sizes.
fn sizes(shards: u64, most: u64) -> Vec<u64> {
    (0..shards).map(|shard| 1 + below(most, philox4x32(counter(shard, 0), [1, 2]))).collect()
}

/// Each rank opens the shards of its own streams and no others.
#[test]
fn any_number_of_ranks_sees_one_order() {
    let (shards, batch, batches) = (10_000, 1024, 40);
    let truth = sizes(shards, 20);
    let of_ranks = |ranks: u64| {
        let mut order = vec![(0, 0); (batch * batches) as usize];
        for rank in 0..ranks {
            let source = Arc::new(Made::new(truth.clone(), 256, rank.is_multiple_of(2)));
            let streams = open(&source, batch, 0, Some(2048));
            assert_eq!(streams.deal.streams, 256);
            let is_own = |stream: u64| stream * ranks / 256 == rank;
            for global in (0..batch * batches).filter(|global| is_own(global % batch % 256)) {
                order[global as usize] = which(&streams, global);
            }
            let opened = source.opened.lock().unwrap();
            assert!(opened.iter().all(|shard| is_own(*shard as u64 % 256)), "{rank} of {ranks}");
        }
        order
    };
    let one = of_ranks(1);
    assert!(one == of_ranks(3) && one == of_ranks(128));
    // Within a batch there is no sample twice, and batches are not in the order of the shards.
    for batch in one.chunks(batch as usize) {
        assert_eq!(batch.iter().collect::<BTreeSet<_>>().len(), batch.len());
    }
    assert!(one[..256].iter().filter(|(_, sample)| *sample == 0).count() < 128);
}

/// Every pass of a stream has each of its samples once, in another order each time.
#[test]
fn a_pass_has_every_sample_once() {
    for (shards, mixed) in [(40, Some(64)), (40, None), (5, Some(10_000)), (1, Some(3))] {
        let truth = sizes(shards, 30);
        let source = Arc::new(Made::new(truth.clone(), 4, false));
        let streams = open(&source, 8, 0, mixed);
        for stream in 0..streams.deal.streams {
            let own = || (stream..shards).step_by(streams.deal.streams as usize);
            let all: BTreeSet<Which> =
                own().flat_map(|shard| (0..truth[shard as usize]).map(move |at| (shard as i64, at as i64))).collect();
            let passes: Vec<Vec<Which>> = (0..3)
                .map(|pass| {
                    let elements = (0..all.len() as u64).map(|at| pass * all.len() as u64 + at);
                    elements.map(|element| which(&streams, streams.deal.global(stream, element))).collect()
                })
                .collect();
            for pass in &passes {
                assert_eq!(pass.iter().copied().collect::<BTreeSet<_>>(), all, "stream {stream} of {shards} shards");
            }
            if mixed.is_none() {
                assert!(passes[0].iter().eq(&all) && passes[0] == passes[2], "in order");
            } else if all.len() > 10 {
                assert!(passes[0] != passes[1] && passes[1] != passes[2]);
            }
        }
    }
}

/// From any place on, whether sizes are known or not, and whoever is asked in which order.
#[test]
fn a_resume_is_the_order_of_the_unbroken_run() {
    let truth = sizes(60, 40);
    let (batch, last) = (12, 4000);
    let mixed = Some(100);
    let whole = open(&Arc::new(Made::new(truth.clone(), 256, true)), batch, 0, mixed);
    let order: Vec<Which> = (0..last).map(|global| which(&whole, global)).collect();
    for start in (0..last - 60).step_by(97).chain([1200, 2400]) {
        for are_known in [true, false] {
            let source = Arc::new(Made::new(truth.clone(), 256, are_known));
            let streams = open(&source, batch, start, mixed);
            // Whoever is first among the workers.
            let asked = (start..start + 60).map(|global| global ^ 1).filter(|global| *global >= start);
            for global in asked {
                assert_eq!(which(&streams, global), order[global as usize], "{global} from {start}");
            }
            let opened = source.opened.lock().unwrap().len();
            assert!(!are_known || opened <= 2 * streams.deal.streams as usize, "{opened} shards opened");
        }
    }
    // What was taken can be had again, and so can what comes; both are what they are.
    for global in [5, 1000, 3999, 4100] {
        let copy = |streams: &Streams| streams.get(global, true).unwrap().unwrap();
        assert_eq!(copy(&whole), copy(&whole), "{global}");
    }
    assert_eq!(
        [5, 1000, 3999].map(|global| which(&whole, global)),
        [5, 1000, 3999].map(|global| order[global as usize])
    );
}

#[test]
fn what_waits_is_bounded_and_counted() {
    let source = Arc::new(Made::new(vec![1000; 64], 16, true));
    let streams = open(&source, 16, 0, Some(512));
    for global in 0..16 * 500 {
        which(&streams, global);
        let (held, most) = (streams.held(), 512 * 100);
        assert!(held <= most, "{held} bytes");
    }
    let all: usize = streams.streams.iter().map(|stream| stream.lock().unwrap().held()).sum();
    assert_eq!(streams.held(), all as u64 * 100);
}

/// What is lost of a shard whose size is known is bad, sample by sample, and sound ones of the stream stand in; the same ones
/// after a resume.
#[test]
fn the_rest_of_a_damaged_shard_is_bad() {
    let made = |are_known| {
        let mut made = Made::new(vec![50; 8], 4, are_known);
        made.damaged.insert(2, 20);
        Arc::new(made)
    };
    let (batch, start) = (8, 40);
    let (whole, resumed) = (open(&made(true), batch, 0, Some(40)), open(&made(true), batch, start, Some(40)));
    let mut bad = Vec::new();
    // One pass of every stream.
    for global in 0..400 {
        let found = whole.get(global, false).unwrap();
        if global >= start {
            assert_eq!(resumed.get(global, false).unwrap(), found);
        }
        let Err(error) = found else { continue };
        assert_eq!(error.to_string(), "lost: nothing after byte 7");
        let name = whole.name(global);
        bad.push(name.strip_suffix(" of 2.tar").unwrap_or_else(|| panic!("{name}")).to_string());
        let stand_ins = whole.stand_ins(global, 31).unwrap();
        assert!(stand_ins.iter().any(|place| whole.get(*place, true).unwrap().is_ok()));
        assert!(stand_ins.iter().all(|place| place / batch > global / batch && place % 4 == global % 4));
        if global >= start {
            assert_eq!(resumed.stand_ins(global, 31).unwrap(), stand_ins);
            assert_eq!(resumed.name(global), name);
        }
    }
    bad.sort();
    let mut expected: Vec<String> = (20..50).map(|sample| format!("sample {sample}")).collect();
    expected.sort();
    assert_eq!(bad, expected);
    let unknown = open(&made(false), batch, 0, Some(40));
    let error = (0..400).find_map(|global| unknown.get(global, false).err()).unwrap();
    assert_eq!(
        error.to_string(),
        "2.tar: nothing after byte 7; fetch it again, leave it out, or state how many samples it has in a `sizes.json` beside \
         it: what is lost of it then counts as bad samples"
    );
}

/// Wherever a shard ends, whatever the windows: sound samples stand in, and none of what is lost.
#[test]
fn sound_samples_stand_in_wherever_a_shard_ends() {
    for (from, window) in (0..50).flat_map(|from| [(from, 4), (from, 16), (from, 200)]) {
        let mut made = Made::new(vec![50; 8], 4, true);
        made.damaged.insert(2, from);
        let streams = open(&Arc::new(made), 8, 0, Some(window));
        for global in 0..400 {
            if streams.get(global, false).unwrap().is_ok() {
                continue;
            }
            let stand_ins = streams.stand_ins(global, 31).unwrap();
            let sound = stand_ins.iter().all(|place| streams.get(*place, true).unwrap().is_ok());
            assert!(sound, "damaged from {from} on, in windows of {window}, at {global}: {stand_ins:?}");
        }
    }
}

/// Where every shard of a stream is cut off, what there is stands in; where there is nothing, that is found out.
#[test]
fn streams_of_which_all_shards_are_cut_off() {
    let check = |from: u64, has_any: bool| {
        let mut made = Made::new(vec![50; 4], 4, true);
        made.damaged.insert(1, from);
        let streams = open(&Arc::new(made), 8, 0, Some(400));
        let is_bad = |global: &u64| streams.get(*global, false).unwrap().is_err();
        for bad in (0..200).filter(is_bad) {
            let stand_ins = streams.stand_ins(bad, 31).unwrap();
            let sound = stand_ins.iter().any(|place| streams.get(*place, true).unwrap().is_ok());
            assert_eq!(sound, has_any, "cut off at {from}, place {bad}");
        }
    };
    check(30, true);
    check(0, false);
}

#[test]
fn shards_that_are_not_as_they_are_known() {
    let check = |truth: u64, known: Option<u64>, expected: &str| {
        let mut made = Made::new(vec![truth], 1, false);
        made.known[0] = known.map_or_else(OnceLock::new, OnceLock::from);
        let streams = open(&Arc::new(made), 4, 0, Some(8));
        let errors: Vec<String> =
            (0..40).filter_map(|global| streams.get(global, false).err()).map(|error| error.to_string()).collect();
        assert!(errors.iter().all(|error| error == expected), "{errors:?}");
        assert!(errors.len() >= 20, "it stays so");
    };
    let advice = "give the shard that was counted, or count anew";
    check(9, Some(12), &format!("0.tar: it has 9 samples, but is known to have 12; {advice}"));
    check(12, Some(9), &format!("0.tar: it has more than the 9 samples that it is known to have; {advice}"));
    check(0, None, "0.tar: no samples in it; write it anew, or leave it out of the source's `path`");
}
