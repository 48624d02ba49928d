//! Applications of the same parameters become one.

use super::{NOTHING, check, places, variant};

fn found(entries: &str) -> Vec<String> {
    places(&variant("alip_tiny", entries), "batching")
}

#[test]
fn two_texts_are_read_at_once() {
    for base in ["alip_tiny", "alip_tiny_rn"] {
        assert_eq!(places(&variant(base, ""), "batching"), ["text, text#2"], "{base}");
    }
    let done = check(&variant("alip_tiny", ""), &["batching"]);
    assert_eq!(done[0].before.flops, done[0].after.flops);
    assert!(done[0].after.bytes < done[0].before.bytes, "{done:?}");
}

#[test]
fn three_texts_are_read_at_once() {
    let third = r#"
        inputs: { "title": (dtype: I32, shape: "[B, T]") },
        body: ["tt = normalize(text(title))", "loss = loss_raw + loss_caption + clip_loss(x, tt, s)"]"#;
    assert_eq!(found(third), ["text, text#2, text#3"]);
}

#[test]
fn towers_that_diverge_are_one_up_to_there() {
    let heads = r#"
        use: ["nn"],
        parts: { "head": "linear(D, D)" },
        body: ["tr = normalize(head(text(raw)))", "tc = normalize(tanh(text(caption)))"]"#;
    assert_eq!(found(heads), ["text, text#2"]);
}

#[test]
fn inputs_of_a_shared_tower_may_be_computed_differently() {
    let projected = r#"
        use: ["towers", "nn"],
        parts: { "a": "linear(D, D)", "b": "linear(D, D)", "tower": "deep(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
        body: ["tr = normalize(tower(a(text(raw))))", "tc = normalize(tower(tanh(b(other(caption)))))"]"#;
    assert_eq!(found(projected), ["tower, tower#2"]);
}

#[test]
fn different_weights_are_not_batched() {
    let two = r#"
        parts: { "other": "text_transformer(vocab: 512, context: T, width: 48, layers: 2, heads: 4, out: D)" },
        body: ["tc = normalize(other(caption))"]"#;
    assert_eq!(found(two), NOTHING);
    assert_eq!(places(&variant("clip_shapes", ""), "batching"), NOTHING);
}

#[test]
fn one_application_after_the_other_is_not_batched() {
    let chained = r#"
        use: ["towers"],
        parts: { "tower": "deep(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
        body: ["tr = normalize(text(raw))", "tc = normalize(tower(other(caption)))"]"#;
    assert_eq!(found(chained), NOTHING);
}

#[test]
fn what_couples_samples_ends_the_batch() {
    let centred = r#"
        use: ["towers"],
        parts: { "tower": "centred(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
        body: ["tr = normalize(tower(text(raw)))", "tc = normalize(tower(other(caption)))"]"#;
    assert_eq!(found(centred), NOTHING);
    // Behind a tower that is batched, the product before the mean is still part of the batch.
    let behind = r#"
        use: ["towers"],
        parts: { "tower": "centred(D)" },
        body: ["tr = normalize(tower(text(raw)))", "tc = normalize(tower(text(caption)))"]"#;
    assert_eq!(found(behind), ["text + tower, text#2 + tower#2"]);
}
