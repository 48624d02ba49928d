//! Batches of several sources.

use super::*;

fn mix(folders: &[(&str, &Folder, f64)], samples: u64) -> Source {
    let named = |(name, folder, _): &(&str, &Folder, f64)| (name.to_string(), folder.source(0.0));
    let weight = |(name, _, weight): &(&str, &Folder, f64)| (name.to_string(), *weight);
    Source::Mix { sources: folders.iter().map(named).collect(), weights: folders.iter().map(weight).collect(), samples }
}

/// Whatever the workers, and wherever a run resumes; a bad image of one source is replaced as any other, and named.
#[test]
fn mixed_batches_do_not_depend_on_workers_or_restarts() {
    let (web, clean) = (Folder::with_images("mix-web", 23, &[4, 17]), Folder::with_images("mix-clean", 9, &[]));
    let source = mix(&[("clean", &clean, 1.0), ("web", &web, 2.0)], 20);
    let options = LoaderOptions { workers: 1, max_bad: 1.0, ..LoaderOptions::train(5, 6) };
    let mut loader = open(source.clone(), &options).unwrap();
    assert_eq!(loader.epoch_len(), Some(20));
    let whole = take(&mut loader, 14);
    let skipped: Vec<_> = whole.iter().flat_map(|batch| &batch.skipped).collect();
    assert!(skipped.iter().all(|skipped| skipped.name.starts_with("web: images/")), "{skipped:?}");
    assert!(!skipped.is_empty(), "the bad images were met");
    for batch in &whole {
        let replaced = |row: usize| batch.skipped.iter().any(|skipped| skipped.row == row);
        let clean = batch.rows.iter().enumerate().filter(|(row, index)| !replaced(*row) && **index < 9).count();
        assert_eq!(clean, 2, "{:?}", batch.rows);
    }
    for start in [0, 1, 6, 11] {
        let resumed = LoaderOptions { start_sample: start as u64 * 6, workers: 3, ..options.clone() };
        assert_eq!(take(&mut open(source.clone(), &resumed).unwrap(), 14 - start), whole[start..], "from {start}");
    }
}

#[test]
fn a_batch_too_small_for_a_mixture_is_refused() {
    let folder = Folder::with_images("mix-small", 4, &[]);
    let source = mix(&[("a", &folder, 1.0), ("b", &folder, 2.0)], 0);
    let refused = open(source, &LoaderOptions::train(0, 1)).err().map(|error| error.to_string());
    let expected = "pipeline `test`: a batch of 1 cannot hold samples of all 2 sources of the mixture";
    assert_eq!(refused.as_deref(), Some(expected));
}
