//! Attention in many spellings, its masks, and what is none.

use super::*;

const QKV: &str = "q: 2x5x2x4, k: 2x5x2x4, v: 2x5x2x3";
const MATRICES: &str = "q: 6x4, k: 5x4, v: 5x3";
const CAUSAL: &str = "m = iota([5, 5], axis: 0) >= iota([5, 5], axis: 1)";

/// Name, inputs, body, whether causal.
const ATTENTION: &[(&str, &str, &[&str], bool)] = &[
    (
        "heads in the middle",
        QKV,
        &[
            "s = einsum('n q h d, n k h d -> n h q k', q, k) / 2",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        false,
    ),
    (
        "weights last",
        QKV,
        &[
            "s = einsum('n q h d, n k h d -> n q k h', q * 0.5, k)",
            "y = einsum('n q k h, n k h e -> n q h e', softmax(s, axis: 2), v)",
        ],
        false,
    ),
    (
        "keys first",
        QKV,
        &[
            "s = einsum('n k h d, n q h d -> n h k q', k * 0.5, q)",
            "y = einsum('n h k q, n k h e -> n h q e', softmax(s, axis: 2), v)",
        ],
        false,
    ),
    (
        "heads first, without the largest",
        "q: 2x2x5x4, k: 2x2x5x4, v: 2x2x5x3",
        &["e = exp(0.5 * (q @ transpose(k, [0, 1, 3, 2])))", "y = (e / sum(e, axis: -1, keep: true)) @ v"],
        false,
    ),
    (
        "merged samples and heads",
        QKV,
        &[
            "a = rearrange(q, 'n l h d -> (n h) l d')",
            "b = rearrange(k, 'n l h d -> (n h) l d')",
            "c = rearrange(v, 'n l h d -> (n h) l d')",
            CAUSAL,
            "s = reshape(a @ transpose(b, [0, 2, 1]), [2, 2, 5, 5]) - 1e9 * (1 - cast(m, 'f32'))",
            "y = rearrange(reshape(softmax(s), [4, 5, 5]) @ c, '(n h) l d -> n l (h d)', h: 2)",
        ],
        true,
    ),
    ("matrices", MATRICES, &["y = softmax(q @ transpose(k)) @ v"], false),
    (
        "matrices, the largest with its gradient",
        MATRICES,
        &[
            "s = q @ transpose(k)",
            "e = exp(s - reduce_max(s, axis: 1, keep: true))",
            "y = (e * sum(e, axis: 1, keep: true) ** -1) @ v",
        ],
        false,
    ),
    (
        "matrices, by logsumexp",
        MATRICES,
        &["s = q @ transpose(k)", "y = exp(s - logsumexp(s, axis: -1, keep: true)) @ v"],
        false,
    ),
    ("matrices, by log_softmax", MATRICES, &["y = exp(log_softmax(-1 * (q @ transpose(k)))) @ v"], false),
    (
        "matrices, values times transposed weights",
        MATRICES,
        &["y = transpose(v) @ transpose(softmax(q @ transpose(k)))"],
        false,
    ),
    (
        "causal by a choice",
        QKV,
        &[
            CAUSAL,
            "s = select(m, einsum('n q h d, n k h d -> n h q k', q, k), -1e30)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by a choice, swapped and scaled later",
        QKV,
        &[
            "m = iota([5, 5], axis: 0) < iota([5, 5], axis: 1)",
            "s = select(m, -1e30, einsum('n q h d, n k h d -> n h q k', q, k)) / sqrt(4)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by a sum",
        QKV,
        &[
            "m = select(iota([5, 1], axis: 0) < iota([1, 5], axis: 1), -1e30, 0)",
            "s = einsum('n q h d, n k h d -> n h q k', q, k * 0.5) + m",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by products",
        QKV,
        &[
            "m = cast(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), 'f32')",
            "s = einsum('n q h d, n k h d -> n h q k', q, k) * m - 1e30 * (1 - m)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by distances",
        QKV,
        &[
            "far = iota([5, 5], axis: 1) - iota([5, 5], axis: 0)",
            "s = select(max(far, 0) == 0, einsum('n q h d, n k h d -> n h q k', q, k), -1e30)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "heads share keys and values",
        "q: 2x5x3x4, k: 2x6x4, v: 2x6x4",
        &["y = einsum('n h q k, n k e -> n q h e', softmax(einsum('n q h d, n k d -> n h q k', q, k)), v)"],
        false,
    ),
    (
        "one query per sample",
        "q: 3x2x4, k: 3x5x2x4, v: 3x5x2x4",
        &["y = einsum('n h k, n k h e -> n h e', softmax(einsum('n h d, n k h d -> n h k', q, k)), v)"],
        false,
    ),
    ("a table that is searched", "q: 2x3x4, k: 5x4, v: 5x3", &["y = softmax(q @ transpose(k)) @ v"], false),
];

#[test]
fn attention_is_found_in_any_spelling() {
    for (name, inputs, body, causal) in ATTENTION {
        let (graph, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, "attention", "{name}");
        let ops: Vec<_> = graph
            .nodes()
            .iter()
            .filter_map(|node| if let Op::Attention(op) = &node.op { Some(op) } else { None })
            .collect();
        assert_eq!(ops.len(), 1, "{name}");
        assert_eq!(ops[0].causal, *causal, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Dot(_))), 0, "{name}");
    }
}

/// Name, lines of the body before the scores `s` are used; what stops it.
const NO_ATTENTION: &[(&str, &[&str], &str, &str)] = &[
    (
        "sigmoid",
        &["p = sigmoid(s)"],
        "y",
        "no attention: the weights are no softmax of the scores; between the two products stands `mul`, `tanh`, `mul`, `add`",
    ),
    (
        "squares",
        &["p = s * s"],
        "y",
        "no attention: the weights are no softmax of the scores; between the two products stands `mul`",
    ),
    ("over the queries", &["p = softmax(s, axis: 2)"], "y", "no attention: softmax does not run over the keys"),
    ("over the heads", &["p = softmax(s, axis: 1)"], "y", "no attention: softmax does not run over the keys"),
    ("weights are read", &["p = softmax(s)"], "y, p", "no attention: scores or weights are read by something else too"),
    (
        "weights are summed up",
        &["p = softmax(s)", "z = sum(p * ln(p), axis: -1)"],
        "y, z",
        "no attention: scores or weights are read by something else too",
    ),
    (
        "scores are read",
        &["p = softmax(s)", "z = reduce_max(s, axis: 2)"],
        "y, z",
        "no attention: scores or weights are read by something else too",
    ),
    (
        "the first query sees nothing",
        &["p = softmax(select(iota([5, 5], axis: 0) > iota([5, 5], axis: 1), s, -1e30))"],
        "y",
        "no attention: a query sees no key",
    ),
    (
        "a window",
        &["p = softmax(select(abs(iota([5, 5], axis: 0) - iota([5, 5], axis: 1)) < 2, s, -1e30))"],
        "y",
        "no attention: a fixed mask that is not causal",
    ),
    (
        "a distance",
        &["p = softmax(s - 0.5 * cast(iota([5, 5], axis: 1), 'f32'))"],
        "y",
        "no attention: a bias is added to the scores, such as -0.5",
    ),
    (
        "a small number",
        &["p = softmax(select(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), s, -5))"],
        "y",
        "no attention: masked scores become -5, which is not far below every score",
    ),
];

#[test]
fn what_is_no_attention_stays_and_says_why() {
    for (name, weights, outputs, why) in NO_ATTENTION {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(weights);
        body.push("y = einsum('n h q k, n k h e -> n q h e', p, v)");
        let (graph, report) = lifted(name, &spec(QKV, &body, outputs));
        let report: String =
            report.split("; ").skip_while(|part| !part.starts_with("no ")).collect::<Vec<_>>().join("; ");
        assert_eq!(report, *why, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Attention(_))), 0, "{name}");
    }
}

/// Name, mask; whether causal too.
const LENGTHS: &[(&str, &[&str], bool)] = &[
    ("below a length", &["m = iota([1, 1, 1, 5], axis: 3) < reshape(max(length, 1), [2, 1, 1, 1])"], false),
    ("up to a position", &["m = iota([5], axis: 0) <= reshape(argmax(tokens, axis: 1), [2, 1, 1, 1])"], false),
    (
        "not beyond",
        &[
            "n = reshape(1 + argmax(tokens, axis: -1), [2, 1, 1, 1])",
            "m = iota([2, 1, 5, 5], axis: 3) >= n",
            "t = select(m, -1e30, s)",
        ],
        false,
    ),
    ("added", &["t = s + select(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), 0, -1e9)"], false),
    (
        "added as a number",
        &["t = s - 1e9 * (1 - cast(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), 'f32'))"],
        false,
    ),
    (
        "up to a position that stands for no limit",
        &["m = iota([5], axis: 0) <= reshape(max(length + 2147483643, 0), [2, 1, 1, 1])"],
        false,
    ),
    (
        "causal too",
        &[
            "a = iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1])",
            "t = select(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), select(a, s, -1e30), -1e30)",
        ],
        true,
    ),
];

#[test]
fn masks_by_lengths_are_found() {
    for (name, mask, causal) in LENGTHS {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(mask);
        if mask.last().is_some_and(|line| line.starts_with("m =")) {
            body.push("t = select(m, s, -1e30)");
        }
        body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)");
        let spec = spec(&format!("{QKV}, length: i32 2, tokens: i32 2x5"), &body, "y");
        let (graph, report) = lifted(name, &spec);
        assert_eq!(report, "attention", "{name}");
        let found = count(
            &graph,
            |op| matches!(op, Op::Attention(op) if op.rows == alip_compiler::ops::attention::Rows::Lengths && op.causal == *causal),
        );
        assert_eq!(found, 1, "{name}");
    }
    let body = [
        "s = einsum('n q h d, n k h d -> n h q k', q, k)",
        "t = select(iota([5], axis: 0) < reshape(length, [2, 1, 1, 1]), s, -1e30)",
        "y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)",
    ];
    let (_, report) = lifted("no bound", &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
    assert_eq!(report, "softmax; no attention: a length might be 0, and then no key is seen: write `max(length, 1)`");
}

/// Name, from the scores `s` to what softmax gets, why it is no attention.
const SHOWN_AGAIN: &[(&str, &[&str], &str)] = &[
    (
        "scaled after a mask by lengths",
        &["t = select(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), s, -1e9) * 1e-6"],
        "masked scores are scaled to a number that is not far below every score",
    ),
    (
        "scaled after a causal mask",
        &["t = select(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), s, -1e9) * 1e-6"],
        "masked scores are scaled to a number that is not far below every score",
    ),
    (
        "multiplied after it",
        &["m = cast(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), 'f32')", "t = (s + (m - 1) * 1e9) * m"],
        "masked scores are multiplied by a tensor",
    ),
    (
        "multiplied after a mask by lengths",
        &[
            "m = cast(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), 'f32')",
            "l = iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1])",
            "t = select(l, s, -1e30) * m + (m - 1) * 1e9",
        ],
        "masked scores are multiplied by a tensor",
    ),
];

#[test]
fn what_shows_hidden_keys_again_is_no_attention() {
    for (name, lines, why) in SHOWN_AGAIN {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(lines);
        body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)");
        let (_, report) = lifted(name, &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
        assert_eq!(report, format!("softmax; no attention: {why}"), "{name}");
    }
}

/// A length of which every line says the same twice: what is known of it must not be worked out twice each time.
#[test]
fn a_length_that_is_computed_in_many_steps_is_looked_at_once() {
    let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)".to_owned(), "n0 = max(length, 1)".to_owned()];
    body.extend((0..40).map(|i| format!("n{} = max(n{i}, min(n{i}, length + {i}))", i + 1)));
    body.push("t = select(iota([5], axis: 0) < reshape(n40, [2, 1, 1, 1]), s, -1e30)".into());
    body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)".into());
    let body: Vec<&str> = body.iter().map(String::as_str).collect();
    let (_, report) = lifted("many steps", &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
    assert_eq!(report, "attention");
}

/// A rounding between the two products is not the op's, and it says which.
#[test]
fn rounded_scores_are_not_lifted() {
    for (scores, weights) in [("cast(cast(s, 'bf16'), 'f32')", "p"), ("s", "cast(cast(p, 'f16'), 'f32')")] {
        let body = [
            "s = einsum('b i d, b j d -> b i j', q, k)".to_owned(),
            format!("r = {scores}"),
            "e = exp(r - stop_gradient(reduce_max(r, axis: -1, keep: true)))".to_owned(),
            "p = e / sum(e, axis: -1, keep: true)".to_owned(),
            format!("y = einsum('b i j, b j d -> b i d', {weights}, k)"),
        ];
        let body: Vec<&str> = body.iter().map(String::as_str).collect();
        let (_, report) = program(&spec("q: 2x3x4, k: 2x5x4", &body, "y"), true);
        let why: Vec<&str> = report.missed.iter().map(|missed| missed.why.as_str()).collect();
        let dtype = if weights == "p" { "bf16" } else { "f16" };
        assert_eq!(why, [format!("scores or weights are rounded to {dtype} between the two products")]);
        assert!(report.lifted.iter().all(|lifted| lifted.what != "attention"), "{:?}", report.lifted);
    }
}
