//! Layouts of images with captions.

use super::*;

#[test]
fn captions_of_coco_belong_to_the_ids_of_images() {
    let images: [File<'_>; 2] = [("val/1.jpg", b""), ("val/2.jpg", b"")];
    let list = |text: &'static str| [&images[..], &[("list.json", text.as_bytes())]].concat();
    let text = r#"Captions(path: "list.json", images: "val")"#;
    check(
        &list(
            r#"{"info": {}, "images": [{"id": 7, "file_name": "2.jpg", "width": 3}, {"id": 9, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 9, "id": 1, "caption": "one"}, {"image_id": 7, "caption": "two"}, {"image_id": 9, "caption": "three"}]}"#,
        ),
        text,
        Ok("| 2.jpg=two | 1.jpg=one/three"),
    );
    check(
        &list(r#"{"images": [{"id": 7, "file_name": "2.jpg"}], "annotations": []}"#),
        r#"Captions(path: "list.json", images: "val", split: "val")"#,
        Err(
            "ROOT/list.json: it says of no image whether it has the split `val`; leave `split` out, or name the images that are meant in a file `only`",
        ),
    );
    let again = "get it again: it is not what was published";
    check(
        &list(r#"{"images": [{"id": 7, "file_name": "2.jpg"}, {"id": 7, "file_name": "1.jpg"}], "annotations": []}"#),
        text,
        Err(&format!("ROOT/list.json: two images with the id 7, the second `1.jpg`; {again}")),
    );
    check(
        &list(r#"{"images": [{"id": 7, "file_name": "2.jpg"}, {"id": 8, "file_name": "2.jpg"}], "annotations": []}"#),
        text,
        Err("ROOT/list.json: two images `2.jpg`; give COCO's or Karpathy's JSON, or lines `IMAGE.jpg,caption`"),
    );
    check(
        &list(r#"{"images": [{"id": 7, "file_name": "2.jpg"}], "annotations": [{"image_id": 8, "caption": ""}]}"#),
        text,
        Err(&format!("ROOT/list.json: annotation 0 is of image 8, which is not there; {again}")),
    );
    check(
        &list(r#"{"images": [{"file_name": "2.jpg"}], "annotations": []}"#),
        text,
        Err(&format!("ROOT/list.json: `2.jpg` has no `id`; {again}")),
    );
    check(
        &list(r#"{"images": [{"id": 1, "file_name": "3.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}"#),
        text,
        Err("ROOT/val/3.jpg: this image of ROOT/list.json is missing; images are looked for in ROOT/val"),
    );
    check(
        &list(r#"{"images": [], "annotations": []}"#),
        text,
        Err("ROOT/list.json: no images in it; give the list of a data set"),
    );
    check(
        &list(r#"{"pictures": []}"#),
        text,
        Err(
            "ROOT/list.json: missing field `images` at line 1 column 16; give COCO's or Karpathy's JSON, or lines `IMAGE.jpg,caption`",
        ),
    );
}

#[test]
fn karpathys_lists_say_which_images_are_tested() {
    let images: [File<'_>; 2] = [("coco/val2014/1.jpg", b""), ("coco/2.jpg", b"")];
    let list = |text: &'static str| [&images[..], &[("k.json", text.as_bytes())]].concat();
    let text = r#"{"images": [
        {"filename": "1.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "one", "tokens": []}, {"raw": "two"}]},
        {"filename": "3.jpg", "split": "train", "sentences": [{"raw": "x"}]},
        {"filename": "2.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "three"}]}], "dataset": "coco"}"#;
    check(&list(text), r#"Captions(path: "k.json", images: "coco")"#, Ok("| val2014/1.jpg=one/two | 2.jpg=three"));
    check(
        &list(text),
        r#"Captions(path: "k.json", images: "coco", split: "val")"#,
        Err("ROOT/k.json: no image has the split `val`; it has `test`, `train`; choose one as `split` in the suite"),
    );
    check(
        &list(r#"{"images": [{"filename": "2.jpg"}]}"#),
        r#"Captions(path: "k.json", images: "coco")"#,
        Err("ROOT/k.json: `2.jpg` has no `split`; give COCO's or Karpathy's JSON, or lines `IMAGE.jpg,caption`"),
    );
}

#[test]
fn entries_have_an_image_and_its_captions() {
    let images: [File<'_>; 2] = [("coco/val2014/1.jpg", b""), ("coco/2.jpg", b"")];
    let list = |text: &'static str| [&images[..], &[("l.json", text.as_bytes())]].concat();
    let text = r#"Captions(path: "l.json", images: "coco")"#;
    check(
        &list(
            r#"[{"image": "val2014/1.jpg", "caption": ["one", "two"]}, {"image": "val2014/2.jpg", "caption": ["three"], "more": 1}]"#,
        ),
        text,
        Ok("| val2014/1.jpg=one/two | 2.jpg=three"),
    );
    let advice = "give COCO's or Karpathy's JSON, or lines `IMAGE.jpg,caption`";
    check(
        &list(r#"[{"image": "2.jpg", "caption": "one"}]"#),
        text,
        Err(&format!("ROOT/l.json: invalid type: string \"one\", expected a sequence at line 1 column 36; {advice}")),
    );
    check(
        &list(r#"[{"image": "2.jpg", "caption": ["a"]}, {"image": "2.jpg", "caption": ["b"]}]"#),
        text,
        Err(&format!("ROOT/l.json: two images `2.jpg`; {advice}")),
    );
}

#[test]
fn lines_have_an_image_and_a_caption() {
    let images: [File<'_>; 2] = [("i/1.jpg", b""), ("i/2.jpg", b"")];
    let lines = |text: &'static str| {
        [&images[..], &[("l.txt", text.as_bytes()), ("only.txt", &b"2\n"[..]), ("bad.txt", &b"1.jpg\n\n4\n"[..])]]
            .concat()
    };
    let text = r#"Captions(path: "l.txt", images: "i")"#;
    check(
        &lines("image,caption\n1.jpg,A dog, running .\n2.jpg,B\n1.jpg,\"C, D\"\n"),
        text,
        Ok("| 1.jpg=A dog, running ./C, D | 2.jpg=B"),
    );
    check(&lines("1.jpg#0\tA dog .\n1.jpg#1\t2 dogs\n"), text, Ok("| 1.jpg=A dog ./2 dogs"));
    check(
        &lines("image_name| comment_number| comment\n1.jpg| 0| A dog .\n1.jpg| 4   B\n"),
        text,
        Ok("| 1.jpg=A dog ./B"),
    );
    check(&lines("1.jpg,A\n2.jpg,B\n"), r#"Captions(path: "l.txt", images: "i", only: "only.txt")"#, Ok("| 2.jpg=B"));
    check(&[("i/1.JPG", b""), ("l.txt", b"1.JPG,\"A \"\"dog\"\", big\"\n")], text, Ok(r#"| 1.JPG=A "dog", big"#));
    check(&lines("1.jpg#0\t\"Stop\" says, \"go\"\n"), text, Ok(r#"| 1.jpg="Stop" says, "go""#));
    check(&lines("1.jpg| 0| \"Stop\" says, \"go\"\n"), text, Ok(r#"| 1.jpg="Stop" says, "go""#));
    check(&lines("1.jpg,\n2.jpg,B\n"), text, Err("ROOT/l.txt:1: no image with its caption, as in `1.jpg,A dog runs.`"));
    check(
        &lines("1.jpg,\"\"\n2.jpg,B\n"),
        text,
        Err("ROOT/l.txt:1: no image with its caption, as in `1.jpg,A dog runs.`"),
    );

    check(
        &lines("1.jpg,A\nno image\n"),
        text,
        Err("ROOT/l.txt:2: no image with its caption, as in `1.jpg,A dog runs.`"),
    );
    check(&lines("1.jpg,A\n1.jpg,\n"), text, Err("ROOT/l.txt:2: no image with its caption, as in `1.jpg,A dog runs.`"));
    check(
        &lines("1.jpg,A\n2.jpg,B\n"),
        r#"Captions(path: "l.txt", images: "i", only: "bad.txt")"#,
        Err("ROOT/bad.txt:3: ROOT/l.txt has no image `4`"),
    );
    check(
        &lines("1.jpg,A\n"),
        r#"Captions(path: "l.txt", images: "j")"#,
        Err("ROOT/j/1.jpg: this image of ROOT/l.txt is missing; images are looked for in ROOT/j"),
    );
}

#[test]
fn a_folder_has_the_captions_of_training() {
    let lines = br#"{"image": "1.png", "captions": ["one", "two"], "split": "test"}
{"image": "2.png", "captions": ["three"], "split": "train"}"#;
    let files: [File<'_>; 3] = [("f/1.png", b""), ("f/2.png", b""), ("f/captions.jsonl", lines)];
    check(&files, r#"Folder(path: "f")"#, Ok("| 1.png=one/two"));
    let root = folder(&files);
    let set = layout(r#"Folder(path: "f")"#).open(root.path()).unwrap();
    assert_eq!(set.captions(1).unwrap(), [["one"]]);
}
