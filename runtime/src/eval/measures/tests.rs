//! Measures by hand.

use super::*;

fn rows(data: &[f32], dim: usize) -> Rows<'_> {
    Rows::new("embeddings", data, dim).unwrap()
}

/// Three images on the axes; scores of text t with image i are the entries of its row.
const AXES: [f32; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

#[test]
fn retrieval_by_hand() {
    #[rustfmt::skip]
    let texts = [
        0.9, 0.1, 0.0, // of image 0: right
        0.2, 0.3, 0.8, // of image 0: its image comes last
        0.1, 0.8, 0.7, // of image 1: right
        0.0, 0.9, 0.6, // of image 2: second
    ];
    let found = retrieval(rows(&AXES, 3), rows(&texts, 3), &[0, 0, 1, 2], &[1, 2, 3]).unwrap();
    let recalls = |of: &[Recall]| of.iter().map(|r| r.recall).collect::<Vec<_>>();
    let chances = |of: &[Recall]| of.iter().map(|r| r.chance).collect::<Vec<_>>();
    assert_eq!(recalls(&found.text_to_image), [0.5, 0.75, 1.0]);
    // Image 0 finds its first text; image 1 prefers the text of image 2; image 2 prefers a text of 0, then one of 1.
    assert_eq!(recalls(&found.image_to_text), [1.0 / 3.0, 2.0 / 3.0, 1.0]);
    let close = |a: Vec<f64>, b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close(chances(&found.text_to_image), [1.0 / 3.0, 2.0 / 3.0, 1.0]));
    // With two of four texts: 1/2, 5/6, 1; with one: 1/4, 1/2, 3/4.
    assert!(close(chances(&found.image_to_text), [1.0 / 3.0, 11.0 / 18.0, 5.0 / 6.0]));
    assert_eq!((found.images, found.texts), (3, 4));
}

#[test]
fn a_collapsed_model_retrieves_nothing() {
    let same = [0.6, 0.8].repeat(50);
    let owner: Vec<usize> = (0..50).collect();
    let found = retrieval(rows(&same, 2), rows(&same, 2), &owner, &[1, 10]).unwrap();
    assert!(found.image_to_text.iter().chain(&found.text_to_image).all(|r| r.recall == 0.0), "{found:?}");
}

#[test]
fn blocks_and_queries_do_not_matter() {
    // 700 images and 1400 texts take several blocks; text t is its image plus a little of the next axis.
    let dim = 700;
    let axis = |at: usize| (0..dim).map(move |d| f32::from(u8::from(d == at)));
    let images: Vec<f32> = (0..dim).flat_map(axis).collect();
    let texts: Vec<f32> =
        (0..2 * dim).flat_map(|t| axis(t / 2).zip(axis((t + 1) % dim)).map(|(a, b)| a + 0.5 * b)).collect();
    let owner: Vec<usize> = (0..2 * dim).map(|t| t / 2).collect();
    let found = retrieval(rows(&images, dim), rows(&texts, dim), &owner, &[1]).unwrap();
    assert_eq!((found.image_to_text[0].recall, found.text_to_image[0].recall), (1.0, 1.0));
    let wrong: Vec<usize> = (0..2 * dim).map(|t| (t / 2 + 350) % dim).collect();
    let found = retrieval(rows(&images, dim), rows(&texts, dim), &wrong, &[1]).unwrap();
    assert_eq!((found.image_to_text[0].recall, found.text_to_image[0].recall), (0.0, 0.0));
}

#[test]
fn images_without_texts_are_left_out() {
    let found = retrieval(rows(&AXES, 3), rows(&AXES[..3], 3), &[0], &[1]).unwrap();
    assert_eq!((found.images, found.texts, found.image_to_text[0].recall), (1, 1, 1.0));
}

#[test]
fn nearest_items_come_best_first_and_ties_by_index() {
    let items = [0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0];
    let found = nearest(&[1.0, 0.0], rows(&items, 2), 3).unwrap();
    assert_eq!(found, [(1, 1.0), (0, 0.5), (2, 0.5)]);
}

#[test]
fn zero_shot_by_hand() {
    // Class 0 from two prompts of different lengths, which count alike; class 1 from one.
    let prompts = [3.0, 0.0, 0.0, 0.5, -2.0, 0.0];
    let classes = class_embeddings(rows(&prompts, 2), &[0, 0, 1], 2).unwrap();
    let half = std::f64::consts::FRAC_1_SQRT_2;
    assert!(classes.0.data.iter().zip([half, half, -1.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-12));
    let images = [1.0, 0.0, 0.0, 1.0, -1.0, 0.1, 0.5, 0.0];
    let found = zero_shot(rows(&images, 2), &classes, &[0, 0, 0, 1]).unwrap();
    assert_eq!(found.per_class, [(2, 3), (0, 1)]);
    assert_eq!((found.top1, found.mean_per_class, found.chance), (0.5, 1.0 / 3.0, 0.5));
}

#[test]
fn classes_are_ranked_by_logit_and_on_ties_by_number() {
    // Four classes of which the second and the last are the same; the image is between them and the first.
    let prompts = [1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0];
    let classes = class_embeddings(rows(&prompts, 2), &[0, 1, 2, 3], 4).unwrap();
    let check = |image: [f32; 2], logits: Logits, predicted: usize, ranks: [usize; 4]| {
        for (label, rank) in ranks.into_iter().enumerate() {
            let found = classify(rows(&image, 2), &classes, &[label], logits).unwrap();
            assert_eq!((found.predicted[0], found.rank[0]), (predicted, rank), "class {label} of {image:?}");
        }
    };
    check([0.6, 0.8], Logits::Exact, 1, [2, 0, 3, 1]);
    check([0.8, 0.6], Logits::Exact, 0, [0, 1, 3, 2]);
    // 100 times these are 70 and 70 as integers, and 0 and 0: cut off towards zero.
    check([0.701, 0.709], Logits::Exact, 1, [2, 0, 3, 1]);
    check([0.701, 0.709], Logits::Whole, 0, [0, 1, 3, 2]);
    check([-0.009, 0.009], Logits::Whole, 0, [0, 1, 2, 3]);
    let found = classify(rows(&[0.6, 0.8, 0.8, 0.6], 2), &classes, &[3, 0], Logits::Exact).unwrap();
    assert_eq!(found.confusion(&[3, 0], 4), [[1, 0, 0, 0], [0; 4], [0; 4], [0, 1, 0, 0]]);
    assert_eq!([found.top(1), found.top(2)], [0.5, 1.0]);
}

#[test]
fn auc_by_hand() {
    assert_eq!(auc(&[0.9, 0.8], &[0.1, 0.2]), Some(1.0));
    assert_eq!(auc(&[0.1], &[0.9]), Some(0.0));
    assert_eq!(auc(&[1.0, 1.0], &[1.0]), Some(0.5));
    // Pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2: 3.5 of 4.
    assert_eq!(auc(&[3.0, 2.0], &[1.0, 2.0]), Some(0.875));
    assert_eq!(auc(&[0.0], &[-0.0]), Some(0.5));
    assert_eq!(auc(&[], &[1.0]), None);
    assert_eq!(auc(&[f32::NAN], &[1.0]), None);
}

#[test]
fn histograms_count_every_value() {
    let found = histogram(&[0.0, 0.24, 0.25, 0.99, 1.0, 7.0, -3.0, f32::NAN], 0.0, 1.0, 4);
    assert_eq!((found.counts, found.nan), (vec![3, 1, 0, 3], 1));
}

#[test]
fn mistakes_are_errors_that_say_what_is_wrong() {
    let check = |result: Result<(), MeasuresError>, message: &str| {
        assert_eq!(result.unwrap_err().to_string(), message);
    };
    let axes = rows(&AXES, 3);
    check(Rows::new("images", &[0.0; 5], 2).map(drop), "images: 5 numbers are no rows of 2");
    check(
        Rows::new("images", &[0.0, 1.0, f32::NAN, 0.0], 2).map(drop),
        "images: row 1 holds a number that is not finite; the model has diverged, lower the learning rate",
    );
    check(
        retrieval(axes, rows(&[0.0; 6], 2), &[0, 1, 2], &[1]).map(drop),
        "texts or classes have 2 columns where 3 are needed: both towers must embed into the same space",
    );
    check(retrieval(axes, axes, &[0, 1], &[1]).map(drop), "owners of texts: 2 where 3 are needed");
    check(retrieval(axes, axes, &[0, 1, 3], &[1]).map(drop), "image 3 does not exist, there are 3");
    check(class_embeddings(axes, &[0, 1, 9], 2).map(drop), "class 9 does not exist, there are 2");
    let classes = class_embeddings(axes, &[0, 1, 2], 3).unwrap();
    check(zero_shot(axes, &classes, &[0, 1]).map(drop), "labels: 2 where 3 are needed");
    check(zero_shot(axes, &classes, &[0, 1, 3]).map(drop), "class 3 does not exist, there are 3");
    let two = class_embeddings(rows(&[1.0, 0.0], 2), &[0], 1).unwrap();
    let message = "texts or classes have 2 columns where 3 are needed: both towers must embed into the same space";
    check(zero_shot(axes, &two, &[0, 0, 0]).map(drop), message);
}

/// Whole numbers from -2 to 2, so that scores are exact in any order of summing and many are equal.
fn small_numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 5
    };
    (0..count).map(|_| next() as f32 - 2.0).collect()
}

/// Scores one after the other: another way than that of the measures.
fn score(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Whether a right item is among the first `k` when all are sorted, best first and right ones last of equals.
fn is_found(query: &[f32], items: &[f32], dim: usize, is_right: impl Fn(usize) -> bool, k: usize) -> bool {
    let mut order: Vec<(f64, bool)> =
        items.chunks(dim).enumerate().map(|(item, row)| (score(query, row), is_right(item))).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.iter().take(k).any(|(_, is_right)| *is_right)
}

#[test]
fn recall_is_that_of_sorting_with_ties_and_five_captions() {
    let dim = 4;
    for images in [1, 2, 4, 1000] {
        let (pictures, captions) = (small_numbers(images * dim, 1), small_numbers(5 * images * dim, 2));
        let owner: Vec<usize> = (0..5 * images).map(|text| text % images).collect();
        let found = retrieval(rows(&pictures, dim), rows(&captions, dim), &owner, &[1, 5, 10]).unwrap();
        for (at, k) in [1, 5, 10].into_iter().enumerate() {
            let share = |found: Vec<bool>| found.iter().filter(|found| **found).count() as f64 / found.len() as f64;
            let of_images = pictures.chunks(dim).enumerate();
            let of_images = of_images.map(|(image, row)| is_found(row, &captions, dim, |text| owner[text] == image, k));
            let of_texts = captions.chunks(dim).enumerate();
            let of_texts = of_texts.map(|(text, row)| is_found(row, &pictures, dim, |image| owner[text] == image, k));
            assert_eq!(found.image_to_text[at].recall, share(of_images.collect()), "{images} images, R@{k}");
            assert_eq!(found.text_to_image[at].recall, share(of_texts.collect()), "{images} images, R@{k}");
        }
        // Of four images or fewer all are among the first ten.
        assert!(images > 4 || found.text_to_image[2].recall == 1.0);
    }
}

#[test]
fn accuracy_is_that_of_sorting_with_ties() {
    let (dim, classes) = (3, 7);
    let prompts = small_numbers(classes * dim, 3);
    for images in [1, 2, 1000] {
        let pictures = small_numbers(images * dim, 4);
        let labels: Vec<usize> = (0..images).map(|image| image * 5 % classes).collect();
        // Classes that are not made unit, so that their products are whole numbers.
        let table = Classes(Items { data: wide(&prompts), dim });
        let found = classify(rows(&pictures, dim), &table, &labels, Logits::Exact).unwrap();
        let mut per_class = vec![(0, 0); classes];
        for (image, row) in pictures.chunks(dim).enumerate() {
            let mut order: Vec<(f64, usize)> =
                prompts.chunks(dim).enumerate().map(|(class, prompt)| (score(row, prompt), class)).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let place = order.iter().position(|(_, class)| *class == labels[image]);
            assert_eq!((found.predicted[image], Some(found.rank[image])), (order[0].1, place), "image {image}");
            per_class[labels[image]].0 += usize::from(order[0].1 == labels[image]);
            per_class[labels[image]].1 += 1;
        }
        let accuracy = found.accuracy(&labels, classes);
        let right: usize = per_class.iter().map(|(right, _)| right).sum();
        assert_eq!((accuracy.top1, &accuracy.per_class), (right as f64 / images as f64, &per_class));
    }
}
