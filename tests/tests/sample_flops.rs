//! What one training sample of alip_b32 costs at the text lengths of real captions: floating point operations of the
//! kernels that are launched, summed from their dimensions, padding of buckets included.

use std::collections::BTreeMap;
use std::path::Path;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, TensorType, Value};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::training::{Keep, training_step};
use alip_compiler::{CompileOptions, compile_model, transform};
use alip_plan::{PROGRAM_TRAIN, Target};
use alip_tests::compiled::Values;
use alip_tests::{packing, skip};

/// Tokens of a text.
const CONTEXT: usize = 77;

/// Magic number of a record (ALIP.md).
const MAGIC: [u8; 4] = 0xced7_230a_u32.to_le_bytes();

/// Raw and caption tokens of every record of a RecordIO file.
fn texts(path: &Path) -> Vec<[Vec<f64>; 2]> {
    let bytes = std::fs::read(path).expect("the file is there");
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let (mut found, mut record, mut at) = (Vec::new(), Vec::new(), 0);
    while at < bytes.len() {
        assert_eq!(bytes[at..at + 4], MAGIC, "a record at byte {at}");
        let (part, length) = (word(&bytes[at + 4..]) >> 29, (word(&bytes[at + 4..]) & 0x1fff_ffff) as usize);
        // Parts of a record were taken apart at a magic number, which was dropped.
        if part > 1 {
            record.extend(MAGIC);
        }
        record.extend(&bytes[at + 8..at + 8 + length]);
        at += 8 + length.next_multiple_of(4);
        if part == 0 || part == 3 {
            assert_eq!(word(&record), 2 * CONTEXT as u32, "labels of record {}", found.len());
            // A head of 24 bytes, then the labels.
            let label = |i: usize| f64::from(f32::from_bits(word(&record[24 + 4 * i..])));
            found.push([0, CONTEXT].map(|first| (first..first + CONTEXT).map(label).collect()));
            record.clear();
        }
    }
    found
}

/// Operations per sample and padding, over batches that go through all texts.
fn cost(texts: &[[Vec<f64>; 2]], batch: usize) -> (f64, f64) {
    let mut sources = SourceMap::new();
    let options = Options { batch: Some(batch as u64), ..Options::default() };
    let mut resolved = resolve(&mut sources, "alip_b32", &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    resolved.model.programs.retain(|name, _| name == PROGRAM_TRAIN);
    let options = transform::Options::default();
    let rewritten =
        transform::forward(&resolved, &options, &Target::cpu().packing).unwrap_or_else(|errors| panic!("{errors}"));
    let mut model = rewritten.model;
    let packed = model.packed.get_mut(PROGRAM_TRAIN).expect("the texts are packed");

    // How many batches run with how many rows.
    let mut runs: BTreeMap<Vec<u64>, usize> = BTreeMap::new();
    let (mut live, mut padded) = (0, 0);
    for first in (0..texts.len()).step_by(batch.min(texts.len())) {
        let rows = (first..first + batch).map(|row| &texts[row % texts.len()]);
        let ty = TensorType::new(DType::I32, [batch as u64, CONTEXT as u64]);
        let input = |which: usize| Value::new(ty.clone(), rows.clone().flat_map(|text| text[which].clone()).collect());
        let inputs = Values::from([("raw".to_owned(), input(0)), ("caption".to_owned(), input(1))]);
        let lengths = packing::lengths(&packed.lengths, &inputs);
        let rows: Vec<u64> = lengths.iter().map(|lengths| lengths.iter().map(|length| *length as u64).sum()).collect();
        let holds = |room: &&Vec<u64>| rows.iter().zip(*room).all(|(rows, room)| rows <= room);
        let room = packed.fewer.iter().map(|(room, _)| room).find(holds).expect("captions are short").clone();
        live += rows.iter().sum::<u64>();
        padded += room.iter().sum::<u64>();
        *runs.entry(room).or_default() += 1;
    }

    packed.fewer.retain(|(rows, _)| runs.contains_key(rows));
    let step = training_step(&resolved, model, Keep::default());
    let mut model = step.unwrap_or_else(|errors| panic!("{errors}")).model;
    model.programs.retain(|name, _| name == PROGRAM_TRAIN);
    let compiled = compile_model(&model, None, &CompileOptions::default());
    let plan = compiled.unwrap_or_else(|errors| panic!("{errors}")).plan.expect("no pass was asked to be the last");
    let mut total = 0.0;
    for bucket in plan.packed[PROGRAM_TRAIN].buckets.iter() {
        let flops: u64 = plan.programs[&bucket.program].steps.iter().map(|step| step.flops).sum();
        total += runs.get(&bucket.rows).map_or(0.0, |runs| *runs as f64) * flops as f64;
    }
    (total / (runs.values().sum::<usize>() * batch) as f64, padded as f64 / live as f64 - 1.0)
}

#[test]
fn a_sample_of_alip_b32_at_the_lengths_of_captions() {
    let Some(folder) = skip::shared_data("alip_rec") else { return };
    let texts = texts(&folder.join("alip_mini.rec"));
    assert_eq!(texts.len(), 200);
    for batch in [16, 512] {
        let (flops, padding) = cost(&texts, batch);
        println!("batch {batch}: {:.2} GFLOP per sample, {:.1} % padding", flops / 1e9, 100.0 * padding);
        assert!(padding < 0.08, "batch {batch}: {padding}");
        assert!(flops <= 31.5e9, "batch {batch}: {flops}");
    }
}
