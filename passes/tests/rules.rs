//! Each pass but `canonicalise` on small graphs: what it does, and what it leaves alone.

mod support;

use support::rules::{becomes, in_mixed, stays};

#[test]
fn a_value_that_no_output_needs_disappears() {
    becomes(
        "dce",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = scale %1 {factor=2.0} : f32[box:9,4]
        %3 = scale %0 {factor=2.0} : f32[text:12,4]
        return %3 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = scale %0 {factor=2.0} : f32[text:12,4]
        return %1 as "y"
        "#,
    );
}

#[test]
fn equal_sums_are_one_in_either_order() {
    becomes(
        "cse",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=b} : f32[4]
        %2 = param {value=b} : f32[4]
        %3 = layer_norm %0, %1, %2 {eps=1e-12} : f32[text:12,4]
        %4 = add %0, %3 : f32[text:12,4]
        %5 = layer_norm %0, %2, %1 {eps=1e-12} : f32[text:12,4]
        %6 = add %5, %0 : f32[text:12,4]
        %7 = add %4, %6 : f32[text:12,4]
        return %7 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=b} : f32[4]
        %2 = layer_norm %0, %1, %1 {eps=1e-12} : f32[text:12,4]
        %3 = add %0, %2 : f32[text:12,4]
        %4 = add %3, %3 : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn values_of_different_dtypes_are_not_one() {
    stays(
        "cse",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = scale %0 {factor=2.0} : f32[text:12,4]
        %2 = scale %0 {factor=2.0} : f16[text:12,4]
        %3 = add %1, %2 : f32[text:12,4]
        return %3 as "y"
        "#,
    );
}

#[test]
fn parameters_fold_into_bindings() {
    becomes(
        "fold",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=a} : f32[4,4]
        %2 = param {value=b} : f32[4,4]
        %3 = param {value=c} : f32[4]
        %4 = scale %1 {factor=0.5} : f32[4,4]
        %5 = scale %4 {factor=0.25} : f32[4,4]
        %6 = concat %5, %2 {axis=0} : f32[8,4]
        %7 = slice %3 {axis=0, end=4, start=1} : f32[3]
        %8 = slice %3 {axis=0, end=1, start=0} : f32[1]
        %9 = concat %7, %8, %7 {axis=0} : f32[7]
        %10 = slice %6 {axis=0, end=7, start=0} : f32[7,4]
        %11 = linear %0, %10, %9 : f32[text:12,7]
        return %11 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value="concat(rows(1, 4, c), rows(0, 1, c), rows(1, 4, c))"} : f32[7]
        %2 = param {value="rows(0, 7, concat(scale(0.125, a), b))"} : f32[7,4]
        %3 = linear %0, %2, %1 : f32[text:12,7]
        return %3 as "y"
        "#,
    );
}

#[test]
fn a_parameter_used_elsewhere_is_not_stored_twice() {
    stays(
        "fold",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=a} : f32[4,4]
        %2 = scale %1 {factor=0.5} : f32[4,4]
        %3 = linear %0, %1 : f32[text:12,4]
        %4 = linear %3, %2 : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn a_factor_that_rounds_is_no_binding() {
    stays(
        "fold",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=a} : f32[4,4]
        %2 = scale %1 {factor=0.3} : f32[4,4]
        %3 = linear %0, %2 : f32[text:12,4]
        return %3 as "y"
        "#,
    );
}

#[test]
fn constants_fold() {
    becomes(
        "fold",
        r#"
        %0 = constant {data=[1.0, 0.3]} : f32[2]
        %1 = constant {data=[1.0, 1e300]} : f32[2]
        %2 = scale %0 {factor=0.3} : f32[2]
        %3 = add %2, %0 : f32[2]
        %4 = constant {data=[1.0, 0.0, 1.0]} : i32[3]
        %5 = gather_rows %3, %4 : f32[3]
        %6 = activate %1 {kind=relu} : f32[2]
        return %5 as "y"
        return %6 as "z"
        "#,
        r#"
        %0 = constant {data=[1.0, 1e+300]} : f32[2]
        %1 = activate %0 {kind=relu} : f32[2]
        %2 = constant {data=[0.39000001549720764, 1.2999999523162842, 0.39000001549720764]} : f32[3]
        return %2 as "y"
        return %1 as "z"
        "#,
    );
}

#[test]
fn rows_are_picked_before_local_ops() {
    becomes(
        "narrow",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=b} : f32[8]
        %3 = input {name="pick.text.0"} : i32[sample:3]
        %4 = linear %0, %1, %2 : f32[text:12,8]
        %5 = activate %4 {kind=relu} : f32[text:12,8]
        %6 = gather_rows %5, %3 : f32[sample:3,8]
        return %6 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=b} : f32[8]
        %3 = input {name="pick.text.0"} : i32[sample:3]
        %4 = gather_rows %0, %3 : f32[sample:3,4]
        %5 = linear %4, %1, %2 : f32[sample:3,8]
        %6 = activate %5 {kind=relu} : f32[sample:3,8]
        return %6 as "y"
        "#,
    );
}

#[test]
fn rows_are_picked_from_queries_only() {
    becomes(
        "narrow",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = input {name="mask.box"} : f32[box:9]
        %3 = input {name="pick.text.0"} : i32[sample:3]
        %4 = attention %0, %1, %1, %2 {heads=2, scale=0.5} : f32[text:12,4]
        %5 = gather_rows %4, %3 : f32[sample:3,4]
        return %5 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = input {name="mask.box"} : f32[box:9]
        %3 = input {name="pick.text.0"} : i32[sample:3]
        %4 = gather_rows %0, %3 : f32[sample:3,4]
        %5 = attention %4, %1, %1, %2 {heads=2, scale=0.5} : f32[sample:3,4]
        return %5 as "y"
        "#,
    );
}

#[test]
fn an_index_of_other_entities_does_not_pass_attention() {
    stays(
        "narrow",
        r#"
        %0 = input {name="x.qtext"} : f32[qtext:8,4]
        %1 = input {name="mask.qtext"} : f32[qtext:8]
        %2 = input {name="any.qtext.0"} : i32[sample:3]
        %3 = attention %0, %0, %0, %1 {heads=2, scale=0.5} : f32[qtext:8,4]
        %4 = gather_rows %3, %2 : f32[sample:3,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn a_computed_index_does_not_pass_attention() {
    stays(
        "narrow",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = input {name="any.text.0"} : i32[box:9]
        %3 = input {name="pick.box.0"} : i32[sample:3]
        %4 = gather_rows %2, %3 : i32[sample:3]
        %5 = attention %0, %0, %0, %1 {heads=2, scale=0.5} : f32[text:12,4]
        %6 = gather_rows %5, %4 : f32[sample:3,4]
        return %6 as "y"
        "#,
    );
}

#[test]
fn an_index_with_more_rows_stays_behind() {
    stays(
        "narrow",
        r#"
        %0 = input {name="x.sample"} : f32[sample:3,4]
        %1 = input {name="any.sample.0"} : i32[text:12]
        %2 = scale %0 {factor=3.0} : f32[sample:3,4]
        %3 = gather_rows %2, %1 : f32[text:12,4]
        return %3 as "y"
        "#,
    );
}

#[test]
fn a_value_that_is_read_whole_stays_whole() {
    stays(
        "narrow",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="pick.text.0"} : i32[sample:3]
        %2 = input {name="pick.text.1"} : i32[sample:3]
        %3 = scale %0 {factor=3.0} : f32[text:12,4]
        %4 = scale %0 {factor=5.0} : f32[text:12,4]
        %5 = gather_rows %3, %1 : f32[sample:3,4]
        %6 = gather_rows %4, %1 : f32[sample:3,4]
        %7 = gather_rows %4, %2 : f32[sample:3,4]
        %8 = add %6, %7 : f32[sample:3,4]
        return %3 as "x"
        return %5 as "y"
        return %8 as "z"
        "#,
    );
}

#[test]
fn columns_are_picked_from_weights() {
    becomes(
        "narrow",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=b} : f32[8]
        %3 = linear %0, %1, %2 : f32[text:12,8]
        %4 = scale %3 {factor=3.0} : f32[text:12,8]
        %5 = slice %4 {axis=1, end=6, start=2} : f32[text:12,4]
        return %5 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=b} : f32[8]
        %3 = slice %2 {axis=0, end=6, start=2} : f32[4]
        %4 = slice %1 {axis=0, end=6, start=2} : f32[4,4]
        %5 = linear %0, %4, %3 : f32[text:12,4]
        %6 = scale %5 {factor=3.0} : f32[text:12,4]
        return %6 as "y"
        "#,
    );
}

#[test]
fn an_activation_joins_its_linear() {
    becomes(
        "fuse-epilogue",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = linear %0, %1 : f32[text:12,8]
        %3 = activate %2 {kind=gelu} : f32[text:12,8]
        %4 = activate %3 {kind=relu} : f32[text:12,8]
        return %4 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = linear %0, %1 {activation=gelu} : f32[text:12,8]
        %3 = activate %2 {kind=relu} : f32[text:12,8]
        return %3 as "y"
        "#,
    );
}

#[test]
fn a_sum_that_is_rounded_or_read_keeps_its_activation() {
    stays(
        "fuse-epilogue",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = linear %0, %1 : f16[text:12,8]
        %3 = activate %2 {kind=gelu} : f32[text:12,8]
        %4 = param {value=v} : f32[8,4]
        %5 = linear %0, %4 : f32[text:12,8]
        %6 = activate %5 {kind=gelu} : f32[text:12,8]
        return %3 as "y"
        return %5 as "z"
        return %6 as "a"
        "#,
    );
}

#[test]
fn a_residual_joins_its_norm() {
    becomes(
        "fuse-norm",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=g} : f32[4]
        %3 = param {value=b} : f32[4]
        %4 = linear %0, %1 : f32[text:12,8]
        %5 = slice %4 {axis=1, end=4, start=0} : f32[text:12,4]
        %6 = add %0, %5 : f32[text:12,4]
        %7 = layer_norm %6, %2, %3 {eps=1e-12} : f32[text:12,4]
        %8 = add %7, %0 : f32[text:12,4]
        %9 = layer_norm %8, %2, %3 {eps=1e-12} : f32[text:12,4]
        return %9 as "y"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=w} : f32[8,4]
        %2 = param {value=g} : f32[4]
        %3 = param {value=b} : f32[4]
        %4 = linear %0, %1 : f32[text:12,8]
        %5 = slice %4 {axis=1, end=4, start=0} : f32[text:12,4]
        %6 = layer_norm %5, %2, %3, %0 {eps=1e-12} : f32[text:12,4]
        %7 = layer_norm %6, %2, %3, %0 {eps=1e-12} : f32[text:12,4]
        return %7 as "y"
        "#,
    );
}

#[test]
fn a_sum_that_is_read_or_a_norm_that_has_a_residual_stays() {
    stays(
        "fuse-norm",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=g} : f32[4]
        %2 = param {value=b} : f32[4]
        %3 = add %0, %0 : f32[text:12,4]
        %4 = layer_norm %3, %1, %2 {eps=1e-12} : f32[text:12,4]
        %5 = add %0, %4 : f32[text:12,4]
        %6 = layer_norm %5, %1, %2, %4 {eps=1e-12} : f32[text:12,4]
        return %3 as "x"
        return %6 as "y"
        "#,
    );
}

#[test]
fn linears_of_one_value_become_wide() {
    becomes(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=aw} : f32[4,4]
        %2 = param {value=ab} : f32[4]
        %3 = param {value=cw} : f32[2,4]
        %4 = param {value=cb} : f32[2]
        %5 = linear %0, %1, %2 : f32[text:12,4]
        %6 = linear %0, %3, %4 : f32[text:12,2]
        return %5 as "y"
        return %6 as "z"
        "#,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=aw} : f32[4,4]
        %2 = param {value=ab} : f32[4]
        %3 = param {value=cw} : f32[2,4]
        %4 = param {value=cb} : f32[2]
        %5 = concat %1, %3 {axis=0} : f32[6,4]
        %6 = concat %2, %4 {axis=0} : f32[6]
        %7 = linear %0, %5, %6 : f32[text:12,6]
        %8 = slice %7 {axis=1, end=4, start=0} : f32[text:12,4]
        %9 = slice %7 {axis=1, end=6, start=4} : f32[text:12,2]
        return %8 as "y"
        return %9 as "z"
        "#,
    );
}

#[test]
fn linears_that_differ_in_kind_do_not_merge() {
    stays(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=aw} : f32[4,4]
        %2 = param {value=ab} : f32[4]
        %3 = param {value=cw} : f32[4,4]
        %4 = param {value=dw} : f32[4,4]
        %5 = param {value=db} : f32[4]
        %6 = param {value=ew} : f32[4,4]
        %7 = param {value=eb} : f32[4]
        %8 = linear %0, %1, %2 : f32[text:12,4]
        %9 = linear %0, %3 : f32[text:12,4]
        %10 = linear %0, %4, %5 {activation=gelu} : f32[text:12,4]
        %11 = linear %0, %6, %7 : f16[text:12,4]
        return %8 as "y"
        return %9 as "z"
        return %10 as "a"
        return %11 as "b"
        "#,
    );
}

#[test]
fn a_weight_used_elsewhere_is_not_stored_twice() {
    stays(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=aw} : f32[4,4]
        %2 = param {value=bw} : f32[4,4]
        %3 = linear %0, %1 : f32[text:12,4]
        %4 = linear %0, %2 : f32[text:12,4]
        %5 = linear %3, %1 : f32[text:12,4]
        return %4 as "y"
        return %5 as "z"
        "#,
    );
}

#[test]
fn linears_of_one_weight_become_tall() {
    becomes(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = param {value=aw} : f32[4,4]
        %3 = param {value=ab} : f32[4]
        %4 = linear %1, %2, %3 : f32[box:9,4]
        %5 = linear %0, %2, %3 : f32[text:12,4]
        return %4 as "y"
        return %5 as "z"
        "#,
        r#"
        rows text+box = 21 of text, box
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = param {value=aw} : f32[4,4]
        %3 = param {value=ab} : f32[4]
        %4 = concat %0, %1 {axis=0} : f32[text+box:21,4]
        %5 = linear %4, %2, %3 : f32[text+box:21,4]
        %6 = part %5 {index=0} : f32[text:12,4]
        %7 = part %5 {index=1} : f32[box:9,4]
        return %7 as "y"
        return %6 as "z"
        "#,
    );
}

#[test]
fn a_linear_that_depends_on_another_does_not_join_it() {
    stays(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = param {value=aw} : f32[4,4]
        %2 = linear %0, %1 : f32[text:12,4]
        %3 = scale %2 {factor=3.0} : f32[text:12,4]
        %4 = linear %3, %1 : f32[text:12,4]
        return %4 as "y"
        "#,
    );
}

#[test]
fn both_directions_of_a_shared_attention_are_one_product() {
    becomes(
        "merge-linear",
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = param {value=q} : f32[4,4]
        %3 = param {value=k} : f32[4,4]
        %4 = input {name="mask.text"} : f32[text:12]
        %5 = input {name="mask.box"} : f32[box:9]
        %6 = linear %0, %2 : f32[text:12,4]
        %7 = linear %1, %3 : f32[box:9,4]
        %8 = attention %6, %7, %7, %5 {heads=2, scale=1.0} : f32[text:12,4]
        %9 = linear %1, %2 : f32[box:9,4]
        %10 = linear %0, %3 : f32[text:12,4]
        %11 = attention %9, %10, %10, %4 {heads=2, scale=1.0} : f32[box:9,4]
        return %8 as "y"
        return %11 as "z"
        "#,
        r#"
        rows text+box = 21 of text, box
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="x.box"} : f32[box:9,4]
        %2 = param {value=q} : f32[4,4]
        %3 = param {value=k} : f32[4,4]
        %4 = input {name="mask.text"} : f32[text:12]
        %5 = input {name="mask.box"} : f32[box:9]
        %6 = concat %2, %3 {axis=0} : f32[8,4]
        %7 = concat %0, %1 {axis=0} : f32[text+box:21,4]
        %8 = linear %7, %6 : f32[text+box:21,8]
        %9 = slice %8 {axis=1, end=8, start=4} : f32[text+box:21,4]
        %10 = slice %8 {axis=1, end=4, start=0} : f32[text+box:21,4]
        %11 = part %10 {index=0} : f32[text:12,4]
        %12 = part %10 {index=1} : f32[box:9,4]
        %13 = part %9 {index=0} : f32[text:12,4]
        %14 = attention %12, %13, %13, %4 {heads=2, scale=1.0} : f32[box:9,4]
        %15 = part %9 {index=1} : f32[box:9,4]
        %16 = attention %11, %15, %15, %5 {heads=2, scale=1.0} : f32[text:12,4]
        return %16 as "y"
        return %14 as "z"
        "#,
    );
}

#[test]
fn matrices_become_f16_and_scores_and_vectors_do_not() {
    let lines = r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f32[4,4]
        %3 = param {value=b} : f32[4]
        %4 = linear %0, %2, %3 : f32[text:12,4]
        %5 = attention %4, %4, %0, %1 {heads=2, scale=1.0} : f32[text:12,4]
        %6 = input {name="pick.text.0"} : i32[sample:3]
        %7 = gather_rows %5, %6 : f32[sample:3,4]
        %8 = slice %7 {axis=1, end=2, start=0} : f32[sample:3,2]
        %9 = param {value=u} : f32[4,2]
        %10 = linear %8, %9, %3 : f32[sample:3,4]
        %11 = slice %10 {axis=1, end=2, start=0} : f32[sample:3,2]
        return %11 as "score"
        return %7 as "context"
        "#;
    stays("precision", lines);
    in_mixed(
        "precision",
        lines,
        r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = input {name="mask.text"} : f32[text:12]
        %2 = param {value=w} : f16[4,4]
        %3 = param {value=b} : f32[4]
        %4 = linear %0, %2, %3 : f16[text:12,4]
        %5 = attention %4, %4, %0, %1 {heads=2, scale=1.0} : f16[text:12,4]
        %6 = input {name="pick.text.0"} : i32[sample:3]
        %7 = gather_rows %5, %6 : f16[sample:3,4]
        %8 = slice %7 {axis=1, end=2, start=0} : f16[sample:3,2]
        %9 = param {value=u} : f16[4,2]
        %10 = linear %8, %9, %3 : f32[sample:3,4]
        %11 = slice %10 {axis=1, end=2, start=0} : f32[sample:3,2]
        return %11 as "score"
        return %7 as "context"
        "#,
    );
}

#[test]
fn what_is_tied_to_an_input_stays_in_f32() {
    let lines = r#"
        %0 = input {name="x.text"} : f32[text:12,4]
        %1 = scale %0 {factor=3.0} : f32[text:12,4]
        %2 = concat %0, %1 {axis=1} : f32[text:12,8]
        %3 = scale %2 {factor=3.0} : f32[text:12,8]
        return %3 as "y"
        "#;
    in_mixed("precision", lines, lines);
}
