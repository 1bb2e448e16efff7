//! Examples of what is masked and what is not, and what always holds.

use crate::fuzz::check as check_promises;
use crate::{Counts, Exemption, InForce, Masking, Settings, SettingsError, TypeSettings};
use expect_test::{Expect, expect};
use hindcast_model::TenantId;
use proptest::prelude::*;
use std::fmt::Write;

fn shipped() -> Masking {
    Masking::new(Settings::default(), &Counts::default()).unwrap()
}

/// Masks each line: what becomes of it, and the types that were found.
fn check_with(masking: &Masking, lines: &str, expected: &Expect) {
    let mut shown = String::new();
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let masked = masking.all().preview(line.as_bytes());
        let text = String::from_utf8(masked.text.clone()).unwrap();
        let types: Vec<_> = masked.found.iter().map(|f| masking.all().name(f)).collect();
        writeln!(shown, "{text}  [{}]", types.join(" ")).unwrap();
        check_promises(masking, line.as_bytes());
    }
    expected.assert_eq(&shown);
}

fn check(lines: &str, expected: Expect) {
    check_with(&shipped(), lines, &expected);
}

/// Lines that stay as they are.
fn check_untouched(lines: &str) {
    let masking = shipped();
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let masked = masking.all().preview(line.as_bytes());
        assert!(
            masked.found.is_empty(),
            "{line}\n{}\n{:?}",
            String::from_utf8_lossy(&masked.text),
            masked.found
        );
    }
}

#[test]
fn the_three_that_must_be_masked() {
    check(
        "
        961219-1234567
        010-1234-5678
        서울시 성동구 성수이로
        ",
        expect![[r#"
            961219-*******  [rrn]
            010-****-5678  [phone]
            서울시 성동구 ****  [address]
        "#]],
    );
}

#[test]
fn registration_numbers() {
    check(
        r#"
        user 961219-1234567 logged in
        주민등록번호: 961219-1234567입니다
        no hyphen 9612191234567, blank 961219 1234567, wide 961219 - 1234567, dash 961219–1234567
        foreigners 850101-5123456 850101-6123456 850101-7123456 850101-8123456
        born after 2000: 030715-3123456 and 1701013123456
        {"rrn":"961219-1234567","n":1}
        {"rrn":9612191234567}
        rrn=961219%2D1234567&x=1 rrn%3D9612191234567%26
        rrn961219-1234567abc RRN9612191234567
        961219-1234567,961219-1234567 961219-1234567
        ssn=1801013123456 주민번호 1801011123456 id 8801232567893
        "#,
        expect![[r#"
            user 961219-******* logged in  [rrn]
            주민등록번호: 961219-*******입니다  [rrn]
            no hyphen 961219*******, blank 961219 *******, wide 961219 - *******, dash 961219–*******  [rrn rrn rrn rrn]
            foreigners 850101-******* 850101-******* 850101-******* 850101-*******  [rrn rrn rrn rrn]
            born after 2000: 030715-******* and 170101*******  [rrn rrn]
            {"rrn":"961219-*******","n":1}  [rrn]
            {"rrn":961219*******}  [rrn]
            rrn=961219%2D*******&x=1 rrn%3D961219*******%26  [rrn rrn]
            rrn961219-*******abc RRN961219*******  [rrn rrn]
            961219-*******,961219-******* 961219-*******  [rrn rrn rrn]
            ssn=180101******* 주민번호 180101******* id 880123*******  [rrn rrn rrn]
        "#]],
    );
}

#[test]
fn phones() {
    check(
        r#"
        call 010-1234-5678 or 010.1234.5678 or 010 1234 5678 or 01012345678
        011-234-5678 016-234-5678 017-2345-6789 018-234-5678 019-234-5678
        02-123-4567 becomes 02-234-5678, 02-2345-6789, 02)2345-6789, (02) 2345-6789
        031-234-5678 064-2345-6789 0212345678 0212345678x 03123456789
        070-1234-5678 070-2345-6789 07023456789 0505-234-5678 0507-1234-5678 0507-2345-6789
        +82-10-1234-5678 +82 10 1234 5678 +821012345678 821012345678 82-10-1234-5678
        +82 (0)10-1234-5678 +82 2-2345-6789 +8231-234-5678 +8210-1234-5678 +82 1012345678
        010-12345678 0101234-5678 010 - 1234 - 5678 010–1234–5678
        전화번호는 010-1234-5678이고 팩스는 02-2345-6789입니다
        {"phone":"010-1234-5678","tel":"\n01012345678"} tel:+82-10-1234-5678
        phone=010%2D1234%2D5678 phone=%2B821012345678 to=%20010-1234-5678
        010-1234-5678010-1234-5678 tel010-1234-5678 T.010-1234-5678
        "#,
        expect![[r#"
            call 010-****-5678 or 010.****.5678 or 010 **** 5678 or 010****5678  [phone phone phone phone]
            011-***-5678 016-***-5678 017-****-6789 018-***-5678 019-***-5678  [phone phone phone phone phone]
            02-***-4567 becomes 02-***-5678, 02-****-6789, 02)****-6789, (02) ****-6789  [phone phone phone phone phone]
            031-***-5678 064-****-6789 02****5678 0212345678x 031****6789  [phone phone phone phone]
            070-****-5678 070-****-6789 070****6789 0505-***-5678 0507-****-5678 0507-****-6789  [phone phone phone phone phone phone]
            +82-10-****-5678 +82 10 **** 5678 +8210****5678 8210****5678 82-10-****-5678  [phone phone phone phone phone]
            +82 (0)10-****-5678 +82 2-****-6789 +8231-***-5678 +8210-****-5678 +82 10****5678  [phone phone phone phone phone]
            010-****5678 010****-5678 010 - **** - 5678 010–****–5678  [phone phone phone phone]
            전화번호는 010-****-5678이고 팩스는 02-****-6789입니다  [phone phone]
            {"phone":"010-****-5678","tel":"\n010****5678"} tel:+82-10-****-5678  [phone phone phone]
            phone=010%2D****%2D5678 phone=%2B8210****5678 to=%20010-****-5678  [phone phone phone]
            010-1234-5678010-1234-5678 tel010-****-5678 T.010-****-5678  [phone phone]
        "#]],
    );
}

#[test]
fn landlines_070_and_050_are_masked_however_their_blocks_are_parted() {
    check(
        r#"
        (02) 123-4567 (02)123-4567 (031)123-4567 (031) 1234-5678 (02) 1234 5678 02)123-4567
        02.1234.5678 02.123.4567 031.123.4567 070.1234.5678 0505.123.4567
        call 02 123 4567, 02 1234 5678, 031 123 4567, 070 1234 5678, 0507 1234 5678
        0212345678 0311234567 03112345678 07012345678 050512345678 05071234567
        02-12345678 (02)12345678 (031)1234567 070-12345678 tel 02 12345678 전화 031 1234567
        +82-2-123-4567 +82 31 123 4567 +82 70-1234-5678 +82 212345678 +82-2-1234-5678
        tel=021234567 phone:0211223344 2026-11-29 09:31:31 INFO 02 123 4567
        {"tel":"02 123 4567","fax":"0212345678"} 전화번호는 02 123 4567입니다 fax=02+123+4567
        0505-123-4567 070-1234-5678 010.1234.5678 (010) 1234-5678
        "#,
        expect![[r#"
            (02) ***-4567 (02)***-4567 (031)***-4567 (031) ****-5678 (02) **** 5678 02)***-4567  [phone phone phone phone phone phone]
            02.****.5678 02.***.4567 031.***.4567 070.****.5678 0505.***.4567  [phone phone phone phone phone]
            call 02 *** 4567, 02 **** 5678, 031 *** 4567, 070 **** 5678, 0507 **** 5678  [phone phone phone phone phone]
            02****5678 031***4567 031****5678 070****5678 0505****5678 0507***4567  [phone phone phone phone phone phone]
            02-****5678 (02)****5678 (031)***4567 070-****5678 tel 02 ****5678 전화 031 ***4567  [phone phone phone phone phone phone]
            +82-2-***-4567 +82 31 *** 4567 +82 70-****-5678 +82 2****5678 +82-2-****-5678  [phone phone phone phone phone]
            tel=02***4567 phone:02****3344 2026-11-29 09:31:31 INFO 02 *** 4567  [phone phone phone]
            {"tel":"02 *** 4567","fax":"02****5678"} 전화번호는 02 *** 4567입니다 fax=02+***+4567  [phone phone phone phone]
            0505-***-4567 070-****-5678 010.****.5678 (010) ****-5678  [phone phone phone phone]
        "#]],
    );
}

#[test]
fn times_rows_versions_and_ids_are_no_landlines() {
    check_untouched(
        r#"
        021234567 at 0211223344 and 0212101530, took 02.12345678 or 031.1234567 of 02 12345678
        Dec 02 123 4567, dec 02 1234 5678, 09:31:31 031 123 4567, 3 02 123 4567, 02 123 4567ms, 02 123 4567 8
        v02.123.4567 1.02.123.4567 02.123.4567.1 x0212345678 0212345678x id_0212345678 #0212345678 a-02-1234567
        2024-02-1234567 02-1234567-1 order/031-1234567 02-12345678x 02 012 3456 0201234567 02.0123.4567 02-0123-4567
        031	123	4567	8 10.51.123.4567 062 1 123 4567 02:123:4567
        "#,
    );
}

#[test]
fn what_stands_behind_a_line_break_in_json_is_masked() {
    check(
        r#"
        {"msg":"to:\n서울시 성동구 성수이로 22\nM12345678\t0212345678\r\nM123A4567"}
        {"msg":"\b01012345678\f9612191234567 \\n01012345678 \nhong@naver.com\n"}
        "C:\new\temp" \d+ \n \t 50%
        "#,
        expect![[r#"
            {"msg":"to:\n서울시 성동구 **** **\nM********\t02****5678\r\nM********"}  [address passport phone passport]
            {"msg":"\b010****5678\f961219******* \\n010****5678 \nho**@naver.com\n"}  [phone rrn phone email]
            "C:\new\temp" \d+ \n \t 50%  []
        "#]],
    );
}

#[test]
fn a_phone_behind_an_address_is_a_phone() {
    check(
        r#"
        서울시 성동구 성수이로 22, 010-1234-5678
        서울시 성동구 성수이로 22 01012345678 hong@naver.com
        서울시 성동구 성수이로 22길 37 101동 1203호 010 1234 5678
        서울시 성동구 성수이로 22 +82-10-1234-5678, 경기도 성남시 분당구 판교역로 235 031-123-4567
        서울시 성동구 성수이로 22 (성수동2가, 010-1234-5678) 서울시 성동구 성수이로 02) 123-4567
        서울시 성동구 성수이로 22 961219-1234567 서울시 성동구 성수이로 22 4111 1111 1111 1111
        addr=%EC%84%9C%EC%9A%B8%EC%8B%9C+%EC%84%B1%EB%8F%99%EA%B5%AC+%EC%84%B1%EC%88%98%EC%9D%B4%EB%A1%9C+010-1234-5678
        "#,
        expect![[r#"
            서울시 성동구 **** **, 010-****-5678  [address phone]
            서울시 성동구 **** ** 010****5678 ho**@naver.com  [address phone email]
            서울시 성동구 **** *** ** **** ***** 010 **** 5678  [address phone]
            서울시 성동구 **** ** +82-10-****-5678, 경기도 성남시 분당구 **** *** 031-***-4567  [address phone address phone]
            서울시 성동구 **** ** (*****, 010-****-5678) 서울시 성동구 **** 02) ***-4567  [address phone address phone]
            서울시 성동구 **** ** 961219-******* 서울시 성동구 **** ** 4111 11** **** 1111  [address rrn address card]
            addr=%EC%84%9C%EC%9A%B8%EC%8B%9C+%EC%84%B1%EB%8F%99%EA%B5%AC+****+010-****-5678  [address phone]
        "#]],
    );
}

#[test]
fn emails() {
    check(
        r#"
        from gildong.hong@example.co.kr to <a@b.kr>, kim+tag@mail.example.com.
        {"email":"hong@naver.com"} mailto:hong@naver.com?subject=x email=hong%40naver.com&x
        메일은 hong@naver.com으로 홍길동@회사.한국 보내세요 "\nhong@naver.com" \u0022hong\u0040naver.com
        postgres://app:secret@db.example.com:5432/shop
        01012345678@naver.com 010-1234-5678@naver.com
        "#,
        expect![[r#"
            from gi**********@example.co.kr to <*@b.kr>, ki*****@mail.example.com.  [email email email]
            {"email":"ho**@naver.com"} mailto:ho**@naver.com?subject=x email=ho**%40naver.com&x  [email email email]
            메일은 ho**@naver.com으로 홍**@회사.한국 보내세요 "\nho**@naver.com" \u0022ho**\u0040naver.com  [email email email email]
            postgres://app:se****@db.example.com:5432/shop  [email]
            01*********@naver.com 01***********@naver.com  [email email]
        "#]],
    );
}

#[test]
fn cards() {
    check(
        r#"
        4111-1111-1111-1111 4111 1111 1111 1111 4111111111111111 4111.1111.1111.1111
        2026-11-29 09:31:31 1234 5678 9012 3456 paid
        no check digit: 1234-5678-9012-3456, 1234 5678 9012 3456, 5500 0000 0000 0005
        amex 3782-822463-10005 378282246310005 diners 3056-930902-5904 30569309025904
        unionpay 6221-2612-3456-7890-123 6222021234567890128 jcb 3530111333300000
        {"card":"5555555555554444"} card=4111%201111%201111%201111 카드번호 9410-1234-5678-9012입니다
        "#,
        expect![[r#"
            4111-11**-****-1111 4111 11** **** 1111 411111******1111 4111.11**.****.1111  [card card card card]
            2026-11-29 09:31:31 1234 56** **** 3456 paid  [card]
            no check digit: 1234-56**-****-3456, 1234 56** **** 3456, 5500 00** **** 0005  [card card card]
            amex 3782-82****-*0005 378282*****0005 diners 3056-93****-5904 305693****5904  [card card card card]
            unionpay 6221-26**-****-***0-123 622202*********0128 jcb 353011******0000  [card card card]
            {"card":"555555******4444"} card=4111%2011**%20****%201111 카드번호 9410-12**-****-9012입니다  [card card card]
        "#]],
    );
}

#[test]
fn passports() {
    check(
        r#"
        passport M12345678 and M123A4567, S12345678 R12345678 D12345678 G12345678 G123B4567
        여권번호:M70689098, passport no. m12345678 여권 m123a4567
        {"passport":"M12345678"} passport-M12345678 M20240101 passport M20240101
        "#,
        expect![[r#"
            passport M******** and M********, S******** R******** D******** G******** G********  [passport passport passport passport passport passport passport]
            여권번호:M********, passport no. m******** 여권 m********  [passport passport passport]
            {"passport":"M********"} passport-M******** M******** passport M********  [passport passport passport passport]
        "#]],
    );
}

#[test]
fn addresses() {
    check(
        r#"
        서울시 성동구 성수이로 22길 37 (성수동2가, 아크밸리) 301호로 배송
        주소: 서울특별시 강남구 테헤란로 152, 10층
        서울 강남구 역삼동 123-45 래미안아파트 101동 1203호
        경기도 성남시 분당구 판교역로 235
        경기 성남시 분당구 판교역로192번길 16 에서 접속
        성남시 분당구 정자동
        성동구 성수이로22길 37
        경기도 양평군 양서면 양수리 123-4번지
        부산광역시 해운대구 우동 산 12-3
        세종특별자치시 한누리대로 2130
        세종시 조치원읍 신흥리 12
        제주특별자치도 제주시 첨단로 242
        서울시성동구성수이로22
        서울 종로구 종로3가 12, 서울 중구 을지로2가
        서울시 성동구 성수이로에서 사고
        전라북도 새구 새로운길 12
        서울 테헤란로 152
        {"address":"서울시 성동구 성수이로","zip":"04781"}
        addr=%EC%84%9C%EC%9A%B8%EC%8B%9C+%EC%84%B1%EB%8F%99%EA%B5%AC+%EC%84%B1%EC%88%98%EC%9D%B4%EB%A1%9C&zip=1
        addr=%EC%84%9C%EC%9A%B8%EC%8B%9C%20%EC%84%B1%EB%8F%99%EA%B5%AC%20%EC%84%B1%EC%88%98%EC%9D%B4%EB%A1%9C
        {"addr":"\uc11c\uc6b8\uc2dc \uc131\ub3d9\uad6c \uc131\uc218\uc774\ub85c 22"}
        "#,
        expect![[r#"
            서울시 성동구 **** *** ** (*****, ****) ****로 배송  [address]
            주소: 서울특별시 강남구 **** ***, ***  [address]
            서울 강남구 *** ***-** ****** **** *****  [address]
            경기도 성남시 분당구 **** ***  [address]
            경기 성남시 분당구 ********* ** 에서 접속  [address]
            성남시 분당구 ***  [address]
            성동구 ******* **  [address]
            경기도 양평군 *** *** ***-***  [address]
            부산광역시 해운대구 ** * **-*  [address]
            세종특별자치시 ***** ****  [address]
            세종시 **** *** **  [address]
            제주특별자치도 제주시 *** ***  [address]
            서울시성동구******  [address]
            서울 종로구 **** **, 서울 중구 *****  [address address]
            서울시 성동구 ****에서 사고  [address]
            전라북도 새구 **** **  [address]
            서울 **** ***  [address]
            {"address":"서울시 성동구 ****","zip":"04781"}  [address]
            addr=%EC%84%9C%EC%9A%B8%EC%8B%9C+%EC%84%B1%EB%8F%99%EA%B5%AC+****&zip=1  [address]
            addr=%EC%84%9C%EC%9A%B8%EC%8B%9C%20%EC%84%B1%EB%8F%99%EA%B5%AC%20****  [address]
            {"addr":"\uc11c\uc6b8\uc2dc \uc131\ub3d9\uad6c **** **"}  [address]
        "#]],
    );
}

#[test]
fn what_only_looks_like_it() {
    check_untouched(
        r#"
        2026-11-29T09:31:31.123456789Z 2026-11-29 09:31:31,123 081109 203615 148 INFO [10.30 16:49:06]
        epoch 1795341521872 1795341521872000 1795341521872000000 1700000000000 {"ts":1801010123456}
        "created_at":1801013123456, [1801013123456,1] time=1801013123456
        req-38101a0b-2096-447d-96ea-a692162415ae 12345678-1234-1234-1234-123456789012
        trace_id=4bf92f3577b34da6a3ce929d0e0e4736 54fadb412c4e40cdbaed9335e4c35a9e a9612191234567b
        sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        blk_38865049064139660 blk_-6952295868487656571 blk_4539148803436467000004 blk_4539148803436467 10.251.73.220:50010 192.168.100.101
        order 2024-1130-000123 20240101-0001234 INV-2024-001234 A-2024-02-1234 ORD2024113012345678
        size 67108864 fe80::1234:5678:9abc:def0 00:1A:2B:3C:4D:5E 0x7ffd1234 v1.2.3-20240101
        110203.1234567 barcode=8801234567893 {"ean13":"8801234567893"} 바코드 8801234567893
        0.1234567890123 3.14159265358979 1e-10 -1234567890123 100000000000000
        2001 2002 2003 2004 and 1000 2000 3000 4000 5000 and 1.2345.6789.1234.5679
        Jun 02 2005 1234, Dec 02 2015 0655, 02:00:31 045 1200 3400 5600
        0101010101 01010101010 0000000000000000 00000000
        991332-1234567 961219-9234567 961219-123456 961219-12345678 1961219-1234567
        M1234567 M123456789 XM12345678 M12345678A sm12345678 m12345678 M20240101.log
        git@host root@10.0.0.1 @angular/core@17.0.1 icon@2x.png getty@tty1.service FastLeaderElection@774 a@b
        user@ @host.com foo@.com a..@b a.@b.com
        서버를 다시 시작합니다. 필요시 데이터베이스로 이동하고 성능을 관리하세요
        서울시 성동구청에서 강남구로 이동, 서울로 7017, 대구시 날씨 맑음, 요구사항 정리 도구로 구성
        서울 강남구 기본적으로 서비스 3건 처리, 성동구 데이터로 3건 조회, 강남구 이동 3회
        "#,
    );
}

#[test]
fn what_stays_and_what_stands_for_the_rest_can_be_said() {
    let of = |name: &str, keep_first, keep_last, character| TypeSettings {
        name: name.into(),
        keep_first,
        keep_last,
        character,
        ..TypeSettings::default()
    };
    let lines = "
        rrn 961219-1234567 phone +82-10-1234-5678 mail gildong@example.com card 4111-1111-1111-1111
        passport M12345678 서울시 성동구 성수이로 22
        ";
    let masking = |types| {
        let settings = Settings {
            types,
            ..Settings::default()
        };
        Masking::new(settings, &Counts::default()).unwrap()
    };
    let nothing = ["rrn", "phone", "email", "card", "passport"].map(|n| of(n, Some(0), Some(0), Some('#')));
    let mut nothing = nothing.to_vec();
    nothing.push(of("address", Some(0), None, None));
    check_with(
        &masking(nothing),
        lines,
        &expect![[r#"
        rrn ######-####### phone +##-##-####-#### mail ################### card ####-####-####-####  [rrn phone email card]
        passport ######### *** *** **** **  [passport address]
    "#]],
    );
    let much = vec![
        of("rrn", Some(7), None, None),
        of("phone", Some(3), Some(4), None),
        of("email", Some(60), None, None),
        of("card", Some(0), Some(10), None),
        of("passport", Some(3), Some(2), None),
        of("address", Some(1), None, None),
    ];
    check_with(
        &masking(much),
        lines,
        &expect![[r#"
        rrn 961219-1****** phone +82-1*-****-5678 mail gil****@example.com card ****-**11-1111-1111  [rrn phone email card]
        passport M12****78 서울시 *** **** **  [passport address]
    "#]],
    );
}

#[test]
fn types_of_ones_own() {
    let of = |name: &str, pattern: &str, keep_first, keep_last| TypeSettings {
        name: name.into(),
        pattern: Some(pattern.into()),
        keep_first,
        keep_last,
        ..TypeSettings::default()
    };
    let settings = Settings {
        types: vec![
            of("employee", r"EMP-\d{6}", Some(4), Some(1)),
            of("secret", r#"password=("[^"]*"|\S+)"#, None, None),
            of("name", "홍길동|김철수", Some(1), None),
        ],
        ..Settings::default()
    };
    let masking = Masking::new(settings, &Counts::default()).unwrap();
    let mut shown = String::new();
    for line in [
        "by EMP-123456, password=hunter2 and password=\"a b\"",
        "홍길동 님, 김철수 님",
        "name=%ED%99%8D%EA%B8%B8%EB%8F%99&x=1",
        "password=010-1234-5678",
    ] {
        let masked = masking.all().preview(line.as_bytes());
        writeln!(shown, "{}", String::from_utf8_lossy(&masked.text)).unwrap();
    }
    expect![[r#"
        by EMP-1****6, password=******* and password=*****
        홍** 님, 김** 님
        name=%ED%99%8D**&x=1
        password=*************
    "#]]
    .assert_eq(&shown);
}

#[test]
fn all_groups_of_a_type_of_ones_own_are_hidden() {
    let of = |name: &str, pattern: &str, keep_last| TypeSettings {
        name: name.into(),
        pattern: Some(pattern.into()),
        keep_last,
        ..TypeSettings::default()
    };
    let settings = Settings {
        types: vec![
            of("login", r"user=(\w+) pass=(\w+)", None),
            of("account", r"acct (\d+)-(\d+)-(\d+)", Some(1)),
            of("either", "key:(a+)|key:(b+)|key:c+|key:()d", None),
        ],
        ..Settings::default()
    };
    let masking = Masking::new(settings, &Counts::default()).unwrap();
    check_with(
        &masking,
        "
        user=kim pass=hunter2 ok
        acct 110-222-333444 and acct 1-22-333
        key:aa key:bb key:cc key:d
        ",
        &expect![[r#"
            user=*** pass=******* ok  [login]
            acct **0-**2-*****4 and acct *-*2-**3  [account account]
            key:** key:** ****** key:d  [either either either]
        "#]],
    );
}

/// A pattern that reads a line to its end for each letter: what is not searched is hidden and counted, never stored.
#[test]
fn a_slow_pattern_hides_what_it_could_not_search() {
    use hindcast_env::Clock;
    let in_force = InForce::default();
    let slow = Settings {
        types: vec![TypeSettings {
            name: "slow".into(),
            pattern: Some(".*[^A-Za-z= ]|[A-Z]".into()),
            ..TypeSettings::default()
        }],
        ..Settings::default()
    };
    in_force.replace(slow).unwrap();
    let masking = in_force.current();
    let mut session = masking.of(&TenantId::default()).unwrap().session();
    let clock = hindcast_env::io::SystemClock::new();
    let began = clock.monotonic().as_duration();
    let line = "key=A ".repeat(100_000);
    let masked = session.mask_str(&line).unwrap();
    assert_eq!(masked.len(), line.len());
    assert!(!masked.contains('A'), "nothing of it is stored");
    assert!(masked.starts_with("key=* key=* ") && masked.ends_with("***********"));
    let took = clock.monotonic().as_duration() - began;
    assert!(took.as_secs() < 20, "{took:?}");
    let unsearched = || {
        let all = in_force.counts().unsearched();
        all.into_iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>()
    };
    assert_eq!(unsearched(), [("slow".to_owned(), 1)]);
    assert!(session.mask_str("key=A").is_some());
    assert_eq!(unsearched(), [("slow".to_owned(), 1)], "a short line is searched whole");
}

#[test]
fn settings_that_cannot_be_used_say_why() {
    let one = |t: TypeSettings| Settings {
        types: vec![t],
        ..Settings::default()
    };
    let named = |name: &str, pattern: Option<&str>| TypeSettings {
        name: name.into(),
        pattern: pattern.map(Into::into),
        ..TypeSettings::default()
    };
    let long = "x".repeat(crate::PATTERN_BYTES_MAX + 1);
    let keeps = |name: &str, first: usize, last: usize| TypeSettings {
        keep_first: Some(first),
        keep_last: Some(last),
        ..named(name, None)
    };
    let exempt = |tenant: &str, types: &[&str]| Settings {
        exempt: vec![Exemption {
            tenant: tenant.into(),
            types: types.iter().map(|t| (*t).to_owned()).collect(),
        }],
        ..Settings::default()
    };
    let bad = [
        one(named("phone", Some("x"))),
        one(named("new", None)),
        one(named("New", Some("x"))),
        one(named("new", Some(&long))),
        one(named("new", Some("("))),
        one(named("new", Some(r"\w{1000}{1000}"))),
        one(named("new", Some("a*"))),
        one(keeps("rrn", 7, 1)),
        one(keeps("phone", 4, 4)),
        one(keeps("card", 6, 5)),
        one(keeps("address", 3, 0)),
        one(keeps("email", 1, 1)),
        one(keeps("passport", usize::MAX, 9)),
        Settings {
            character: '1',
            ..Settings::default()
        },
        Settings {
            types: vec![named("a", Some("x")), named("a", Some("y"))],
            ..Settings::default()
        },
        Settings {
            types: (0..=crate::CUSTOM_MAX)
                .map(|n| named(&format!("t{n}"), Some("x")))
                .collect(),
            ..Settings::default()
        },
        Settings {
            exempt: vec![Exemption::default(); crate::EXEMPT_MAX + 1],
            ..Settings::default()
        },
        exempt("", &[]),
        exempt("team", &["phones"]),
        Settings {
            exempt: vec![exempt("team", &[]).exempt[0].clone(); 2],
            ..Settings::default()
        },
    ];
    let mut shown = String::new();
    for settings in bad {
        let error = Masking::new(settings, &Counts::default()).unwrap_err().to_string();
        writeln!(
            shown,
            "{}",
            error
                .lines()
                .last()
                .unwrap_or_default()
                .chars()
                .take(160)
                .collect::<String>()
        )
        .unwrap();
    }
    expect![[r#"
        masking type "phone" is shipped and has a matcher of its own; give your pattern another name and switch phone off
        masking type "new" is not shipped and needs a pattern; shipped are rrn, phone, email, card, address, passport
        masking type "New": a name is up to 40 of a-z, 0-9, _ and -, and begins with a letter
        masking type "new": the pattern takes 1025 bytes, more than 1024; split it
        error: unclosed group
        masking type "new": the pattern cannot be used: Compiled regex exceeds size limit of 1048576 bytes.
        masking type "new": the pattern matches the empty text and would match everywhere; make it longer
        masking type "rrn" keeps too much: of a registration number at most 7 digits: the birthday and the sex
        masking type "phone" keeps too much: of a phone number at most 7 digits
        masking type "card" keeps too much: of a card number at most 10 digits
        masking type "address" keeps too much: of an address keep_first says how many administrative parts stay, at most 3, and nothing stays at the end
        masking type "email" keeps too much: of an e-mail address keep_first says how many letters stay before the @ (never more than half); keep_last = 0 hides the dom
        masking type "passport" keeps too much: of a passport number at most 5 characters
        masking: '1' cannot stand for hidden characters; choose one of *#!?^~$
        masking type "a" is given twice; keep one of them
        masking: 33 types beside the shipped ones, more than 32; join patterns with |
        masking: 1001 exemptions, more than 1000
        masking exemption of tenant "": "" is not a tenant name: use 1 to 128 of the characters A-Z a-z 0-9 _ . -
        masking exemption of tenant "team": there is no type "phones"; leave types out for all of them
        masking exemption of tenant "team": it is given twice; name all types in one
    "#]].assert_eq(&shown);
    let most = Settings {
        types: (0..crate::CUSTOM_MAX)
            .map(|n| named(&format!("t{n}"), Some("x")))
            .collect(),
        ..Settings::default()
    };
    assert!(Masking::new(most, &Counts::default()).is_ok());
}

#[test]
fn tenants_may_be_exempt_and_reloads_keep_counts() {
    let in_force = InForce::default();
    let mask = |tenant: &str, text: &str| {
        let masking = in_force.current();
        let tenant = TenantId::new(tenant).unwrap();
        let Some(masker) = masking.of(&tenant) else {
            return text.to_owned();
        };
        let mut session = masker.session();
        session.mask_str(text).unwrap_or(text).to_owned()
    };
    let text = "010-1234-5678 hong@naver.com";
    assert_eq!(mask("a", text), "010-****-5678 ho**@naver.com");
    let exempt = |tenant: &str, types: &[&str]| Exemption {
        tenant: tenant.into(),
        types: types.iter().map(|t| (*t).to_owned()).collect(),
    };
    let settings = Settings {
        exempt: vec![exempt("a", &["email"]), exempt("b", &[])],
        ..Settings::default()
    };
    in_force.replace(settings).unwrap();
    assert_eq!(mask("a", text), "010-****-5678 hong@naver.com");
    assert_eq!(mask("b", text), text);
    assert_eq!(mask("c", text), "010-****-5678 ho**@naver.com");
    let bad = Settings {
        character: 'x',
        ..Settings::default()
    };
    assert_eq!(in_force.replace(bad), Err(SettingsError::Character { given: 'x' }));
    assert_eq!(mask("b", text), text, "bad settings change nothing");
    let off = Settings {
        on: false,
        ..Settings::default()
    };
    in_force.replace(off).unwrap();
    assert_eq!(mask("c", text), text);
    let counts: Vec<_> = in_force
        .counts()
        .by_type()
        .into_iter()
        .filter(|(_, n)| *n > 0)
        .collect();
    assert_eq!(counts, [("email".to_owned(), 2), ("phone".to_owned(), 3)]);
    assert_eq!(in_force.counts().bytes(), 3 * text.len() as u64);
}

#[test]
fn counts_of_types_are_bounded_over_all_reloads() {
    let in_force = InForce::default();
    for n in 0..300 {
        let types = vec![TypeSettings {
            name: format!("t{n}"),
            pattern: Some("x".into()),
            ..TypeSettings::default()
        }];
        let settings = Settings {
            types,
            ..Settings::default()
        };
        in_force.replace(settings).unwrap();
    }
    assert_eq!(in_force.counts().by_type().len(), 257);
}

/// Pieces of everything that is found, and of what lies between.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => prop::sample::select(vec![
            "961219", "1234567", "010", "02", "031", "+82", "82", "10", "1234", "5678", "4111", "1111", "M", "S", "123A", "345678",
            "12345678", "01012345678", "9612191234567", "4111111111111111", "hong", "naver.com", "a.b", "서울시", "서울", "경기도",
            "성남시", "성동구", "분당구", "성수이로", "역삼동", "양서면", "22길", "37", "101동", "(성수동2가)", "을지로3가",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(vec!["-", " ", ".", "@", ",", ")", "(", "+", "_", "%20", "%2D", "%40", "\\n", "\\u0040", "\"", "=", ":", "–", "*"]).prop_map(str::to_owned),
        1 => "[0-9]{1,8}",
        1 => ".{0,3}",
    ];
    prop::collection::vec(piece, 0..40).prop_map(|p| p.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// No growth, no torn UTF-8, nothing that is found again, the same from a session: see `fuzz::check`.
    #[test]
    fn promises_hold_for_soups(text in soup()) {
        check_promises(shipped_once(), text.as_bytes());
    }

    #[test]
    fn promises_hold_for_any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200), text in soup(), at in any::<prop::sample::Index>()) {
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..at, text.into_bytes());
        check_promises(shipped_once(), &bytes);
    }

    /// A number that stands for itself is hidden wherever it stands, whatever stands around it.
    #[test]
    fn what_is_written_as_usual_is_hidden(
        left in "[a-z ,:=\"가-힣]{0,8}[ ,:=\"(가-힣]", right in "([ ,;\")가-힣][a-z ,:가-힣]{0,8})?",
        day in 1u32..29, month in 1u32..13, year in 0u32..100, sex in 1u32..9, rest in 0u32..1_000_000,
        net in prop::sample::select(vec!["010", "011", "016", "017", "018", "019"]), a in 1000u32..10_000, b in 0u32..10_000,
    ) {
        let masking = shipped_once();
        for number in [
            format!("{year:02}{month:02}{day:02}-{sex}{rest:06}"),
            format!("{net}-{a}-{b:04}"),
            format!("{net} {a} {b:04}"),
            format!("{net}{a}{b:04}"),
            format!("{a}-{b:04}-{a}-{b:04}"),
        ] {
            let line = format!("{left}{number}{right}");
            let masked = masking.all().preview(line.as_bytes());
            prop_assert!(!masked.found.is_empty() && masked.text != line.as_bytes(), "{line}");
            prop_assert!(!String::from_utf8(masked.text).unwrap().contains(&number), "{line}");
        }
    }
}

fn shipped_once() -> &'static Masking {
    static SHIPPED: std::sync::LazyLock<Masking> = std::sync::LazyLock::new(shipped);
    &SHIPPED
}

/// The longest lines of what matchers read ahead or back for: were any of it quadratic, each would take minutes.
#[test]
fn very_long_lines_take_linear_time() {
    use hindcast_env::Clock;
    let clock = hindcast_env::io::SystemClock::new();
    let masking = shipped_once();
    let pieces = [
        "a@",
        "@",
        "a.",
        "1-",
        "0",
        "010-",
        "4111-",
        "010-1234-",
        "서울 ",
        "서울시 성동구 ",
        "성동구 가",
        "길",
        "%",
        "%20",
        "\\u",
        "성수이로22길 ",
        "1 ",
        "(가",
        "82",
        "+82-",
        "961219-",
        "M123A",
        "hong@naver.",
        "x",
    ];
    for piece in pieces {
        let text = piece.repeat(256 * 1024 / piece.len());
        let began = clock.monotonic().as_duration();
        let masked = masking.all().preview(text.as_bytes());
        let took = clock.monotonic().as_duration() - began;
        assert!(masked.text.len() <= text.len());
        assert!(took.as_secs() < 20, "{piece:?} took {took:?}");
    }
}
