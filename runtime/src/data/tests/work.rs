//! What a loader delivers of what its workers can do.

use std::time::Duration;

use super::*;

/// A source that lets its readers wait, as a disk does.
struct Disk;

impl SampleSource for Disk {
    fn len(&self) -> u64 {
        100
    }

    fn sample(&self, index: u64) -> Result<RawSample, SampleError> {
        std::thread::sleep(Duration::from_millis(10));
        Ok(of_one_level(index, 4))
    }

    fn name(&self, index: u64) -> String {
        format!("block {index}")
    }
}

/// What workers did is counted by stage, and no more than once. How much of it is delivered is a figure of the benchmarks.
#[test]
fn the_work_of_workers_is_counted() {
    for workers in [1, 2] {
        let options = LoaderOptions { workers, ..LoaderOptions::train(0, 8) };
        let measured = measure(&hostile(), Arc::new(Disk), &options, 8).unwrap();
        assert!(measured.rate() > 0.0 && measured.prepared() > 0.0, "{workers} workers");
        let Work { samples, busy, stages } = measured.work;
        assert!(samples >= measured.samples && measured.samples == 64, "{samples}");
        let [(source, slow), (op, fast)] = stages[..] else { panic!("{stages:?}") };
        assert_eq!((source, op), ("source", "normalize_rgb"));
        assert!(slow >= Duration::from_millis(640) && slow > fast && slow + fast <= busy, "{stages:?} in {busy:?}");
    }
}

/// Decode, random crop, triangle 224, mirror, normalise and two texts on real photographs; prints the rate.
#[test]
fn photographs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/flickr8k");
    if !folder.is_dir() {
        skipped(format_args!("no {}", folder.display()));
        return;
    }
    let source = Source::Folder {
        path: folder.display().to_string(),
        split: "train".into(),
        eval_split: "test".into(),
        raw: 0,
        caption: 1,
        swap_raw: 0.3,
        swap_seed: 0,
    };
    let samples = open_source(&source, Mode::Train).unwrap();
    let mut pipeline = pipeline(source);
    for node in &mut pipeline.ops {
        if let PipelineOp::Resize(Resize { height, width, .. }) = &mut node.op {
            (*height, *width) = (224, 224);
        }
    }
    let mut options = LoaderOptions::train(0, 64);
    for workers in [1, 2] {
        options.workers = workers;
        let measured = measure(&pipeline, samples.clone(), &options, 8).unwrap();
        assert_eq!((measured.samples, measured.skipped.len()), (512, 0));
        eprintln!("{workers} workers: {:.0} images/s", measured.rate());
    }
}
