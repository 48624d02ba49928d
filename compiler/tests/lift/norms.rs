//! Normalisations, and what losses need of a matrix.

use super::*;

/// Name, inputs, body, what the report says.
const NORMS: &[(&str, &str, &[&str], &str)] = &[
    ("softmax of the library", "x: 4x3x5", &["y = softmax(x, axis: 1)"], "softmax"),
    ("softmax without the largest", "x: 4x5", &["e = exp(x)", "y = e / sum(e, axis: -1, keep: true)"], "softmax"),
    (
        "softmax by a reciprocal",
        "x: 4x5",
        &["e = exp(x - reduce_max(x, axis: 0, keep: true))", "y = (1 / sum(e, axis: 0, keep: true)) * e"],
        "softmax",
    ),
    ("softmax by logsumexp", "x: 4x5", &["y = exp(x - logsumexp(x, axis: -1, keep: true))"], "softmax"),
    ("softmax by einsum", "x: 4x5", &["e = exp(x - 3)", "y = e / reshape(einsum('n c -> n', e), [4, 1])"], "softmax"),
    ("log_softmax of the library", "x: 4x5", &["y = log_softmax(x)"], "logsumexp"),
    ("logsumexp of the library", "x: 4x5", &["y = logsumexp(x, axis: 0)"], "logsumexp"),
    ("logsumexp without the largest", "x: 4x5", &["y = ln(sum(exp(x), axis: 1))"], "logsumexp"),
    (
        "logsumexp with the largest's gradient",
        "x: 4x5",
        &["m = reduce_max(x, axis: 1)", "y = m + ln(sum(exp(x - reshape(m, [4, 1])), axis: 1))"],
        "logsumexp",
    ),
    ("logsumexp of a transposed matrix", "x: 4x5", &["y = logsumexp(transpose(x), axis: 0)"], "logsumexp"),
    (
        "layer_norm by moments",
        "x: 4x5",
        &[
            "m = mean(x, axis: -1, keep: true)",
            "v = mean(x * x, axis: -1, keep: true) - m * m",
            "y = (x - m) / sqrt(v + 1e-3)",
        ],
        "layer_norm",
    ),
    (
        "layer_norm by moments that stay positive",
        "x: 2x3x5",
        &[
            "m = mean(x, axis: [1, 2], keep: true)",
            "v = max(mean(x ** 2, axis: [1, 2], keep: true) - m ** 2, 0)",
            "y = (x - m) * (v + 1e-3) ** -0.5",
        ],
        "layer_norm",
    ),
    (
        "layer_norm by sums and a root",
        "x: 4x5, w: 5, b: 5",
        &[
            "c = x - reshape(sum(x, axis: 1) * 0.2, [4, 1])",
            "v = reshape(einsum('n d, n d -> n', c, c) / 5, [4, 1])",
            "y = c * w * (1 / sqrt(v + 1e-5)) + b",
        ],
        "layer_norm",
    ),
    (
        "layer_norm, weights first",
        "x: 4x5, w: 5, b: 5",
        &["c = x - mean(x, axis: -1, keep: true)", "y = w * c / sqrt(mean(c * c, axis: -1, keep: true) + 1e-5) + b"],
        "layer_norm",
    ),
    ("cross_entropy of the library", "x: 4x5, t: i32 4", &["y = cross_entropy(x, t)"], "cross_entropy"),
    (
        "cross_entropy by log_softmax",
        "x: 4x5, t: i32 4",
        &["y = -mean(gather(log_softmax(x), t, axis: 1, batch: 1))"],
        "cross_entropy",
    ),
    (
        "cross_entropy by softmax",
        "x: 2x4x5, t: i32 2x4",
        &["y = -ln(gather(softmax(x), t, axis: 2, batch: 2))"],
        "cross_entropy",
    ),
    (
        "cross_entropy by the logarithm of softmax",
        "x: 4x5, t: i32 4",
        &["y = sum(gather(-ln(softmax(x)), t, axis: 1, batch: 1))"],
        "cross_entropy",
    ),
];

#[test]
fn normalisations_are_found_in_any_spelling() {
    for (name, inputs, body, what) in NORMS {
        let (graph, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, *what, "{name}");
        assert_eq!(graph.nodes().iter().filter(|node| node.op.name() == *what).count(), 1, "{name}");
    }
}

/// Name, body: what looks like a normalisation of x, which is `[4, 5]`, and is none.
const NO_NORMS: &[(&str, &[&str], &str)] = &[
    ("another sum", &["e = exp(x)", "y = e / sum(exp(2 * x), axis: -1, keep: true)"], ""),
    ("half of the sum", &["e = exp(x)", "y = e / sum(e[:, 0:3], axis: -1, keep: true)"], ""),
    ("a stopped sum", &["e = exp(x)", "y = e / stop_gradient(sum(e, axis: -1, keep: true))"], ""),
    // The gradient of the shift is not that of a shift which cancels: only what is below it is a logsumexp.
    (
        "a shift stopped once",
        &["m = reduce_max(x, axis: 1)", "y = m + ln(sum(exp(x - reshape(stop_gradient(m), [4, 1])), axis: 1))"],
        "logsumexp",
    ),
    ("two axes", &["c = x - mean(x, axis: 0, keep: true)", "y = c / sqrt(mean(c * c, axis: 1, keep: true) + 1)"], ""),
    (
        "unbiased",
        &["c = x - mean(x, axis: 1, keep: true)", "y = c / sqrt(sum(c * c, axis: 1, keep: true) / 4 + 1)"],
        "",
    ),
    ("not centred", &["y = x / sqrt(mean(x * x, axis: 1, keep: true) + 1)"], ""),
];

#[test]
fn what_is_no_normalisation_stays() {
    for (name, body, what) in NO_NORMS {
        let (_, report) = lifted(name, &spec("x: 4x5", body, "y"));
        assert_eq!(report, *what, "{name}");
    }
}

/// Name, body: the losses of images x among texts t and of texts among images, both `[4, 3]`, at the scale s.
const CONTRASTIVE: &[(&str, &[&str])] = &[
    ("of the library", &["y = clip_loss(x, t, s)"]),
    (
        "by cross entropies",
        &[
            "l = s * (x @ transpose(t))",
            "own = iota([4], axis: 0)",
            "y = 0.5 * (cross_entropy(l, own) + cross_entropy(transpose(l), own))",
        ],
    ),
    (
        "by log_softmax and the unit matrix",
        &[
            "l = x @ transpose(t) * s",
            "eye = cast(iota([4, 4], axis: 0) == iota([4, 4], axis: 1), 'f32')",
            "y = -0.5 * (mean(sum(eye * log_softmax(l, axis: 1), axis: 1)) + mean(sum(eye * log_softmax(l, axis: 0), axis: 0)))",
        ],
    ),
    (
        "by a choice",
        &[
            "l = (s * x) @ transpose(t)",
            "own = sum(select(iota([4, 4], axis: 0) == iota([4, 4], axis: 1), l, 0))",
            "y = (0.5 * (sum(logsumexp(l, axis: 1)) + sum(logsumexp(l, axis: 0))) - own) / 4",
        ],
    ),
    (
        "one product each way",
        &[
            "a = s * (x @ transpose(t))",
            "b = s * einsum('i d, j d -> j i', x, t)",
            "own = iota([4], axis: 0)",
            "y = mean(-ln(gather(softmax(a), own, axis: 1, batch: 1)) - gather(log_softmax(b), own, axis: 1, batch: 1)) / 2",
        ],
    ),
];

#[test]
fn contrastive_losses_need_of_the_matrix_only_logsumexps() {
    for (name, body) in CONTRASTIVE {
        let (graph, _) = lifted(name, &spec("x: 4x3, t: 4x3, s: ", body, "y"));
        // Who reads something that depends on a product, as a matrix?
        let mut wide = vec![false; graph.nodes().len()];
        for id in graph.ids() {
            let node = graph.node(id);
            let of_product = node.inputs.iter().any(|input| wide[input.index()]);
            assert!(
                !of_product || matches!(node.op, Op::LogSumExp { .. } | Op::Pointwise(_) | Op::Transpose { .. }),
                "{name}: {}",
                node.op.name()
            );
            wide[id.index()] =
                matches!(node.op, Op::Dot(_)) || (of_product && !matches!(node.op, Op::LogSumExp { .. }));
        }
        assert_eq!(count(&graph, |op| matches!(op, Op::LogSumExp { .. })), 2, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Gather { .. } | Op::CrossEntropy)), 0, "{name}");
    }
}

/// Name, inputs, body: sums of parts of a matrix that are not its diagonal.
const NO_DIAGONALS: &[(&str, &str, &[&str])] = &[
    (
        "a column",
        "x: 4x3, t: 1x3",
        &["l = x @ transpose(t)", "y = sum(l * cast(iota([4, 1], axis: 0) == iota([4, 1], axis: 1), 'f32'))"],
    ),
    (
        "a matrix that is no square",
        "x: 4x3, t: 6x3",
        &["l = x @ transpose(t)", "y = sum(l * cast(iota([4, 6], axis: 0) == iota([4, 6], axis: 1), 'f32'))"],
    ),
    (
        "numbers as conditions",
        "x: 4x3, t: 4x3",
        &[
            "l = x @ transpose(t)",
            "y = sum(select(cast(iota([4, 4], axis: 0), 'bool') == cast(iota([4, 4], axis: 1), 'bool'), l, 0))",
        ],
    ),
];

#[test]
fn only_a_square_has_a_diagonal() {
    for (name, inputs, body) in NO_DIAGONALS {
        let (_, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, "", "{name}");
    }
}
