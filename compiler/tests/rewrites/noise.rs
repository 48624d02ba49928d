//! Graphs with noise: a rewrite keeps every number that is drawn where it is, or leaves the graph alone.

use std::collections::BTreeSet;

use super::*;

/// Towers with noise in every block, of which that for texts is applied twice and read at the end.
fn towers(arguments: &str) -> String {
    format!(
        r#"Graph(name: "g", base: "alip_tiny", parts: {{
            "visual": "vit(image: 32, patch: 8, width: 64, layers: 2, heads: 2, out: D, {arguments})",
            "text": (module: "text_transformer(vocab: 512, context: T, width: 48, layers: 2, heads: 4, out: D, {arguments})", path: ""),
        }})"#
    )
}

/// What is drawn in training.
fn draws(spec: &str, lift: bool, disabled: &Disabled) -> BTreeSet<(u64, u8, Vec<u64>)> {
    let (model, _) = model(spec, lift, disabled);
    let draw = |op: &Op| match op {
        Op::Random { stream, lane, shape } => Some((*stream, *lane, shape.sizes())),
        _ => None,
    };
    model.programs["train"].nodes().iter().filter_map(|node| draw(&node.op)).collect()
}

#[test]
fn every_rewrite_keeps_what_is_drawn() {
    for arguments in ["dropout: 0.1", "drop_path: 0.3", "dropout: 0.2, drop_path: 0.2"] {
        let (spec, names) = (towers(arguments), transform::names().collect::<Vec<_>>());
        let alone = names.iter().map(std::slice::from_ref).chain([names.as_slice()]);
        for rewrites in alone {
            compare(&spec, rewrites);
            let plain = draws(&spec, false, &all_but(&[]));
            assert!(plain.len() >= 3 * 2 * 2, "three towers of two blocks with two places each");
            assert_eq!(draws(&spec, true, &all_but(rewrites)), plain, "{rewrites:?}");
        }
    }
}

/// The last block computes only what is read, though it draws for all of it.
#[test]
fn noise_is_read_where_the_block_is() {
    let (_, lifted) = compare(&towers("dropout: 0.1"), &["push_down"]);
    assert!(lifted.iter().any(|done| !done.places.is_empty()), "{lifted:?}");
}
