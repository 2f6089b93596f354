"""Expressions, each about one thing, to compare with Jinja2. Those that Jinja2 refuses, ours must refuse too."""

_EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
7 // 2 ~ ' ' ~ -7 // 2 ~ ' ' ~ 7 // -2 ~ ' ' ~ -7 // -2
7 % 3 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 % -3 ~ ' ' ~ -7.5 % 2 ~ ' ' ~ 7.5 % -2
7.5 // 2 ~ ' ' ~ -7.5 // 2 ~ ' ' ~ 0.0 // 3 ~ ' ' ~ -0.0 // 3
2 ** 10 ~ ' ' ~ 2 ** -1 ~ ' ' ~ 2 ** 0.5 ~ ' ' ~ 2 ** 3 ** 2 ~ ' ' ~ -2 ** 2
0 ** -1
1 / 0
1 // 0
1 % 0
1.0 / 0
10 / 2
1 / 3
-5
+5
- - 5
--5
not 5
not not none
-'a'
+none
-true
1 + true
true + true
1 + 1.0
'a' + 'b'
'a' + 1
1 + 'a'
'a' * 3
3 * 'a'
'a' * -1
'a' * 2.0
[1] * 2
[1] + [2]
[1] + (2,)
(1,) + (2,)
(1, 2) * 2
[] * 5
'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] ~ undefined_name
1 ~ 2
1 == 1.0
1 == true
'1' == 1
'a' < 'b'
'a' < 'B'
'é' > 'z'
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 == 2
1 < 'a'
none < 1
[1, 2] < [1, 3]
[1, 2] < [1, 2, 0]
[1, 'a'] < [1, 2]
(1, 2) == [1, 2]
(1, 2) < (1, 3)
{'a': 1} == {'a': 1.0}
{'a': 1} < {'a': 2}
[1, [2]] == [1, [2]]
undefined_name == other_undefined
undefined_name != 1
undefined_name < 1
1 < undefined_name
undefined_name + 1
1 + undefined_name
'a' ~ undefined_name
undefined_name.x
undefined_name['x']
undefined_name[1:]
undefined_name()
undefined_name or 'fallback'
undefined_name and 'x'
not undefined_name
undefined_name is defined
undefined_name is undefined
undefined_name.x is defined
d.nope is defined
d.nope.deeper is defined
d.nope.deeper
d['nope'] is defined
d.nope | default('x')
d.nope.deeper | default('x')
-undefined_name
undefined_name in [1]
1 in undefined_name
undefined_name | length
undefined_name | list
undefined_name | upper
undefined_name | trim
undefined_name | join(',')
undefined_name | tojson
undefined_name | int
undefined_name | float
undefined_name | abs
undefined_name | items | list
undefined_name | first
undefined_name | last
undefined_name | sort
undefined_name | dictsort
undefined_name | map('upper') | list
undefined_name | selectattr('x') | list
undefined_name | replace('a', 'b')
undefined_name | string
undefined_name | reverse | list
undefined_name | sum
undefined_name | unique | list
undefined_name | indent
undefined_name | wordcount
undefined_name | round
undefined_name | batch(2) | list
undefined_name | max
[undefined_name]
{'a': undefined_name}
{undefined_name: 1}
none.x
none['x']
none.x.y
none | length
none | upper
none | trim
none | list
none | default('x')
none | default('x', true)
none | string
none ~ ''
none | int
none | float
none | tojson
none + 'a'
none()
5.x
n.x
n.x.y
n['a']
n[0]
'a' in 'abc'
'' in 'abc'
'd' not in 'abc'
1 in 'abc'
none in 'abc'
undefined_name in 'abc'
1 in [1, 2]
1.0 in [1, 2]
'1' in [1, 2]
[1] in [[1], 2]
'a' in d
'zzz' in d
1 in d
[1] in d
'a' in none
'a' in 5
1 in (1, 2)
1 in range(3)
'a' in {'a': 1}.keys()
('a', 1) in {'a': 1}.items()
1 in {'a': 1}.values()
not 1 in [1]
not (1 in [1])
1 if true else 2
1 if false else 2
1 if false
(1 if false) is defined
1 if 0 else 2 if 0 else 3
(1 if t else 2) + 1
'x' if undefined_name else 'y'
1 and 0 or 3
0 or '' or none
'a' and 'b'
none or undefined_name or []
true and not false
[1, 2, 3]
[1, 2, 3,]
[]
()
(1,)
(1)
(1, 2)
1, 2
1,
{}
{'a': 1, 'b': [1, 2], 'c': {'d': none}}
{'a': 1,}
{1: 2, 1.0: 3, true: 4}
{(1, 2): 3}
{[1]: 2}
{'a': 1, 'a': 2}
{1: 'a', '1': 'b'}
'single' "double"
'it''s'
"a" 'b' ~ 'c'
'\n\t\\\'\"\x41\u00e9\U0001F600\101\7'
"\q\d"
'é'
'\x4'
'\u12'
'\ud800'
''
1_000
0x1F ~ 0b101 ~ 0o17 ~ 0XaB
1_0.5_0 ~ ' ' ~ 1e5 ~ ' ' ~ 1E-5 ~ ' ' ~ 1.5e+3 ~ ' ' ~ 1e16 ~ ' ' ~ 1e22 ~ ' ' ~ 123456789012345680.0
0.1 + 0.2
1e308 * 10
-1e308 * 10
1e308 * 10 - 1e308 * 10
0.0001 ~ ' ' ~ 0.00001 ~ ' ' ~ 1e15 ~ ' ' ~ 1e-5 ~ ' ' ~ 5e-324 ~ ' ' ~ 1.7976931348623157e308
100.0 ~ ' ' ~ 100 ~ ' ' ~ 1.0 ~ ' ' ~ 1.10 ~ ' ' ~ -0.0 ~ ' ' ~ 12345.678
012
1.
.5
s[0] ~ s[-1] ~ s[4]
s[100]
s[100] is defined
s[1:3] ~ '|' ~ s[:-3] ~ '|' ~ s[-3:] ~ '|' ~ s[::2] ~ '|' ~ s[::-1] ~ '|' ~ s[5:1:-1] ~ '|' ~ s[:]
s[100:] ~ '|' ~ s[:-100] ~ '|' ~ s[-100:2] ~ '|' ~ s[3:2]
s[::0]
s['a']
s[1.0]
s[none]
s[true]
s[none:2]
s['a':]
u[3:9] ~ u[-1] ~ u[::-2]
u | length
l[0] ~ l[-1] ~ l[true]
l[5]
l[5] is undefined
l[1:] ~ l[:-1] ~ l[::-1] ~ l[::2] ~ l[1:1]
l[:2.0]
l['x']
l.0 ~ l.1
l.5
nested.1.1.0
nested[1][1][0]
nested[1, 1]
(1, 2, 3)[1:]
(1, 2, 3)[0]
range(5)[1]
range(5)[1:3] | list
d['a'] ~ d.a ~ d['b']['c'][1] ~ d.b.c.0
d['x y']
d[1]
d['1']
d.1
d[[1]]
d[1:2]
d['items']
d.items()
d.items() | list
d.keys() | list
d.values() | list
d.keys()
{'a': 1}.keys()
{'a': 1}.values()
{'a': 1}.items()
{}.items()
d.keys()[0]
d.keys() | length
d.get('a')
d.get('nope')
d.get('nope', 'x')
d.get('nope', default='x')
d.get()
d.get([1])
d.copy()
d.pop('a')
d.update({'q': 1})
d.setdefault('a', 1)
d.clear()
l.append(4)
l.pop()
l.sort()
l.append is defined
l.count(1)
l.index(2)
l.index(9)
l.copy()
(1, 1).count(1)
l.__class__
s.__class__
s.__class__.__mro__
d.__class__ is defined
''.__class__.__base__.__subclasses__()
s.nope()
s.upper is callable
s.upper() ~ s.lower() ~ s.swapcase() ~ s.title() ~ s.capitalize() ~ s.casefold()
u.upper()
u.lower()
u.title()
u.capitalize()
u.casefold()
'ΑΣ ΑΣΑ Σ'.lower()
'ǆ ǅ'.title() ~ 'ŉ'.upper() ~ 'ΐ'.upper() ~ 'ß'.title()
"they're bill's x1y".title()
"they're bill's x1y (a-b) [c] {d} <e> f_g" | title
'HELLO wORLD' | capitalize
u | upper
u | lower
u | title
u | capitalize
ws.strip() ~ '|' ~ ws.lstrip() ~ '|' ~ ws.rstrip()
'xxaxx'.strip('x') ~ 'xyaxy'.lstrip('yx') ~ 'éaé'.strip('é') ~ 'a'.strip('')
'aXbX'.rstrip('X')
ws.strip(none)
ws.strip(1)
'\u00a0\u3000a\u2003\x1c'.strip()
csv.split(',')
csv.split(',', 1)
csv.split(',', maxsplit=2)
csv.split(sep=',')
csv.rsplit(',', 1)
csv.rsplit(',')
csv.split('')
csv.split()
words.split()
words.split(none, 1)
words.split(' ')
words.rsplit()
words.rsplit(none, 1)
words.rsplit(none, 2)
words.split(none, 0)
words.rsplit(none, 0)
''.split()
''.split(',')
'abc'.split('abc')
'a--b--c'.split('--')[-1]
'a</think>b'.split('</think>')
csv.split(1)
csv.partition(',')
csv.rpartition(',')
csv.partition('zz')
csv.rpartition('zz')
csv.partition('')
lines.splitlines()
lines.splitlines(true)
lines.splitlines(keepends=true)
''.splitlines()
'a\n'.splitlines()
s.startswith('Hello') ~ s.startswith('x') ~ s.endswith('World') ~ s.startswith('') ~ s.endswith('')
s.startswith(('x', 'H'))
s.endswith(('x', 'd'))
s.startswith(['H'])
s.startswith('ello', 1)
s.startswith('ello', 1, 4)
s.endswith('Hello', 0, 5)
s.startswith(1)
s.startswith(none)
s.find('o') ~ s.rfind('o') ~ s.find('zz') ~ s.index('W') ~ s.rindex('l') ~ s.find('o', 5) ~ s.find('o', 5, 6) ~ s.find('') ~ s.rfind('') ~ s.find('', 99)
u.find('日') ~ u.index('😀') ~ u.rfind('S')
s.index('zz')
s.count('l') ~ s.count('') ~ s.count('ll') ~ s.count('l', 4) ~ 'aaaa'.count('aa')
s.replace('l', 'L') ~ s.replace('l', 'L', 1) ~ s.replace('', '-') ~ s.replace('zz', 'y') ~ s.replace('l', '') ~ s.replace('o', 'oo', -1)
'日本'.replace('', '-')
'ab'.replace('', '-', 2)
s.replace('l')
s.replace('l', 1)
','.join(['a', 'b']) ~ ''.join([]) ~ '-'.join('abc')
','.join([1, 2])
','.join(d)
', '.join(ls | sort)
'%s and %d' % ('a', 5)
'%s' % 'a' ~ '%s' % none ~ '%s' % [1] ~ '%r' % 'a' ~ '%5s|%-5s|' % ('a', 'b')
'%d' % 3.7 ~ '%i' % true ~ '%05d' % 42 ~ '%+d' % 5 ~ '% d' % 5 ~ '%x %X %o %#x' % (255, 255, 8, 255)
'%.2f %e %g %G %10.3f|%-8.1f|' % (3.14159, 12345.678, 0.0001, 1e20, 2.5, 2.5)
'%5.1f%%' % 99.55
'%(a)s-%(b)s' % {'a': 1, 'b': 2}
'%(zz)s' % {'a': 1}
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%d' % 'a'
'%q' % 1
'%' % 1
'%c%c' % ('a', 66)
'%*d' % (5, 42)
'%.3s' % 'abcdef'
'%s' % undefined_name
'100%'
'{} {}'.format('a', 1) ~ '{0} {1} {0}'.format('a', 'b') ~ '{x}'.format(x=1) ~ '{{}}'.format()
'{:>8}|{:<8}|{:^8}|{:*^9}|{:08.3f}|{:+d}|{:,}|{:_}|{:x}|{:#x}|{:b}|{:%}|{:.1%}|{:e}'.format('a', 'b', 'c', 'd', 3.14159, 5, 1234567, 1234567, 255, 255, 5, 0.5, 0.256, 12345.678)
'{!r} {!s}'.format('a', 'b')
'{0[a]} {0.b} {1[0]}'.format({'a': 1, 'b': 2}, [3])
'{:{}}|'.format('a', 5)
'{:.3}'.format('abcdef')
'{:.3}'.format(3.14159) ~ ' {:.2}'.format(1234.5) ~ ' {:.4}'.format(1e10) ~ ' {:.3}'.format(100.0)
'{}'.format()
'{.x}'.format(d)
'{[0]}'.format(l)
'{x}'.format(y=1)
'{0} {}'.format(1, 2)
'{'.format(1)
'}'.format(1)
'{:d}'.format('a')
'{:s}'.format(1)
'{:d}'.format(1.5)
'{:5}|{:<5}|'.format(1, 2)
'{:5}|'.format(true)
'{}'.format(true) ~ '{}'.format(none) ~ '{}'.format(1.0) ~ '{}'.format([1])
'{:>5}'.format(none)
'{0.__class__}'.format('a')
'{a}'.format_map({'a': 1})
'a'.center(5) ~ '|' ~ 'ab'.center(5, '*') ~ '|' ~ 'a'.ljust(3, '.') ~ '|' ~ 'a'.rjust(3) ~ '|' ~ 'abc'.center(2) ~ '|' ~ 'ab'.center(5) ~ 'abc'.center(6, '-')
'a'.center(5, 'xx')
'42'.zfill(5) ~ '-42'.zfill(5) ~ '+4'.zfill(3) ~ ''.zfill(2)
'a\tb\tc'.expandtabs() ~ '|' ~ 'a\tb'.expandtabs(4) ~ 'ab\n\tc'.expandtabs(4)
'TestHook'.removeprefix('Test') ~ 'TestHook'.removesuffix('Hook') ~ 'x'.removeprefix('yy')
'abc'.isalpha() ~ 'ab1'.isalpha() ~ ''.isalpha() ~ '12'.isdigit() ~ '1.2'.isdigit() ~ 'a1'.isalnum() ~ ' '.isspace() ~ 'a'.islower() ~ 'A'.isupper() ~ 'Aa'.istitle() ~ 'a b'.isidentifier() ~ 'é'.isascii() ~ '٣'.isdecimal() ~ 'a\n'.isprintable() ~ 'ab_1'.isidentifier()
'A1'.isupper() ~ '1'.isupper() ~ 'aB'.islower() ~ 'A B'.istitle() ~ 'AB'.istitle() ~ "They're".istitle()
(1.5).is_integer() ~ (2.0).is_integer()
u | list
s | list
l | list
d | list
5 | list
(1, 2) | list
s | length ~ l | length ~ d | length ~ (1, 2) | length ~ e | length
5 | length
range(3) | length
s | count
l | first ~ l | last ~ s | first ~ s | last ~ d | first ~ d | last
el | first
el | first is defined
(el | last) | default('none')
5 | first
l | map('string') | first
l | map('string') | last
l | map('string') | length
l | join ~ l | join('-') ~ ls | join(', ') ~ el | join('x') ~ s | join('.')
people | join(',', attribute='name')
people | join(',', 'age')
l | join(1)
mixed | join('|')
5 | join
d | join(',')
l | sort ~ l | sort(reverse=true) ~ ls | sort ~ ls | sort(case_sensitive=true) ~ ls | sort(true, true)
mixed | sort
people | sort(attribute='age') | map(attribute='name') | list
people | sort(attribute='age,name') | map(attribute='name') | list
people | sort(attribute='name', reverse=true) | map(attribute='name') | list
people | sort(attribute='nope')
s | sort
d | sort
5 | sort
l | reverse | list ~ s | reverse ~ el | reverse | list
d | reverse | list
5 | reverse
ls | unique | list ~ [1, 1.0, true, 2] | unique | list ~ ls | unique(case_sensitive=true) | list
people | unique(attribute='age') | map(attribute='name') | list
[[1], [1]] | unique | list
l | min ~ l | max ~ ls | min ~ ls | max ~ ls | max(case_sensitive=true) ~ s | min
el | min
(el | max) is defined
mixed | max
people | max(attribute='age')
people | min(attribute='name')
l | sum ~ el | sum ~ [1.5, 2] | sum ~ l | sum(start=10) ~ people | sum(attribute='age') ~ people | sum('age', 5)
ls | sum
ls | sum(start='')
[[1], [2]] | sum(start=[])
l | batch(2) | list ~ l | batch(2, 'x') | list ~ el | batch(2) | list ~ l | batch(5) | list
l | batch(0) | list
l | slice(2) | list ~ l | slice(2, 'x') | list ~ l | slice(5) | list
l | slice(0) | list
people | groupby('age')
people | groupby('age') | map('first') | list
people | groupby('age') | map('last') | map('length') | list
people | groupby('nope', default='z')
people | groupby('boss.name')
(people | groupby('age') | first).grouper
(people | groupby('age') | first).list | length
ls | groupby(0)
d | dictsort
{'b': 1, 'A': 2, 'c': 0} | dictsort ~ {'b': 1, 'A': 2} | dictsort(true) ~ {'b': 1, 'A': 2} | dictsort(by='value') ~ {'b': 1, 'A': 2} | dictsort(reverse=true)
{'b': 1} | dictsort(by='nope')
{1: 2, 'a': 3} | dictsort
l | dictsort
d | items | list
l | items | list
people | map(attribute='name') | list
people | map(attribute='boss.name') | list
people | map(attribute='boss.name', default='-') | list
people | map(attribute='boss', default={}) | map(attribute='name', default='?') | list
people | map(attribute='tags.0') | list
l | map('string') | list ~ ls | map('upper') | join ~ ls | map('replace', 'a', 'X') | list ~ l | map('default', 5) | list
ls | map('nope') | list
ls | map('nope')|first
ls | map() | list
5 | map('upper') | list
nested | map('length') | list ~ nested | map('first') | map('default', 0) | list ~ nested | map('join', '-') | list
people | map(attribute='name', foo=1) | list
[0, 1, '', none, [], 'a'] | select | list ~ [0, 1, '', 'a'] | reject | list
[1, 2, 3, 4] | select('odd') | list ~ [1, 2, 3, 4] | select('divisibleby', 2) | list ~ [1, 2, 3] | select('gt', 1) | list ~ [1, 2] | reject('==', 1) | list ~ ['a', 1] | select('string') | list
[1] | select('nope') | list
people | selectattr('boss') | map(attribute='name') | list
people | rejectattr('boss') | map(attribute='name') | list
people | selectattr('age', 'equalto', 30) | map(attribute='name') | list
people | selectattr('age', '>', 25) | list | length
people | selectattr('boss', 'defined') | list | length
people | selectattr('boss.name', 'eq', 'Bo') | list | length
people | selectattr('name', 'in', ['Bo', 'Cy']) | list | length
people | selectattr() | list
people | selectattr('age', 'nope') | list
messages | selectattr('role', 'equalto', 'user') | list | last
(messages | selectattr('role', 'equalto', 'nope') | list | last).content | default('none')
messages | map(attribute='content') | join('/')
messages | selectattr('role', '==', 'user') | map(attribute='content') | first
l | default(1) ~ e | default('x') ~ e | default('x', true) ~ z | d(7, true) ~ z | d(7) ~ undefined_name | d
undefined_name | default(value=1)
undefined_name | default('a', boolean=true)
undefined_name | default(default_value='b')
'42' | int ~ ' 42 ' | int ~ '4.9' | int ~ 'x' | int ~ 'x' | int(7) ~ '0x1A' | int(0, 16) ~ '1A' | int(base=16) ~ '101' | int(0, 2) ~ 4.9 | int ~ -4.9 | int ~ true | int ~ '1_000' | int ~ '' | int ~ '-7' | int ~ '+7' | int ~ '1e3' | int ~ 'inf' | int ~ [] | int
'0b11' | int(0, 0) ~ '0o17' | int(base=0) ~ '012' | int(5, 0) ~ '12' | int(base=99)
1e400 | int
'4.5' | float ~ '1e3' | float ~ 'x' | float ~ 'x' | float(1.5) ~ 5 | float ~ ' 1.5 ' | float ~ '1_0.5' | float ~ 'nan' | float ~ '-inf' | float ~ 'Infinity' | float ~ '.5' | float ~ '5.' | float ~ '1e' | float ~ none | float ~ true | float
'0x10' | float
-5 | abs
(-5) | abs ~ (-2.5) | abs ~ true | abs
'a' | abs
2.5 | round ~ 3.5 | round ~ -2.5 | round ~ 2.567 | round(2) ~ 2.675 | round(2) ~ 1234.5 | round(-2) ~ 42 | round ~ 42.0 | round ~ 2.1 | round(method='ceil') ~ 2.9 | round(0, 'floor') ~ 2.123 | round(2, 'ceil') ~ 1250 | round(-2) ~ 1350 | round(-2) ~ 15 | round(-1)
42 | round(0, 'ceil')
2.5 | round(method='nope')
'a' | round
1e300 | round(5) ~ 0.5 | round ~ 1.5 | round ~ 1e16 | round ~ 123.456 | round(1)
s | upper | lower | title
s | replace('l', 'L') | replace('o', '0', 1) | trim | length
5 | replace('5', 6)
ws | trim ~ '|' ~ 'xxaxx' | trim('x')
5 | trim
5 | upper
s | center(20) ~ '|' ~ 'ab' | center(width=5) ~ '|'
'a b c' | wordcount ~ 'it''s' | wordcount ~ '' | wordcount ~ u | wordcount
'one\ntwo\n\nthree' | indent
'one\ntwo\n\nthree' | indent(2, true)
'one\ntwo\n\nthree' | indent(2, true, true)
'one\ntwo\n' | indent(width='> ', first=true)
'one\n' | indent
'' | indent
5 | indent
lines | indent(1)
'foo bar baz qux' | truncate(9) ~ '|' ~ 'foo bar baz qux' | truncate(9, true) ~ '|' ~ 'foo bar baz qux' | truncate(11) ~ '|' ~ 'foo bar baz qux' | truncate(11, false, '...', 0) ~ '|' ~ 'foobarbazqux' | truncate(5, end='>')
'foo' | truncate(1)
'%s-%s' | format('a', 1) ~ '%(x)s' | format(x=2)
'%s' | format('a', x=1)
html | escape ~ html | e ~ html | escape | escape ~ html | safe | escape ~ html | forceescape ~ 5 | escape
(html | escape) + html
html + (html | escape)
(html | safe) + '<'
(html | safe) ~ '<'
(html | escape).upper()
(html | escape) | upper
(html | escape).replace('&', '<')
(html | escape).split('&')
(html | escape) | length
(html | safe) | last | e ~ (html | safe) | first | e
l | sort(reverse=undefined_name)
l | sort(reverse=none)
(html | escape) is escaped ~ html is escaped
[html | escape]
('<' | safe).join(['<', '>'])
('%s' | safe) % '<'
('{}' | safe).format('<')
('<' | safe) * 2
('<b>' | safe)[0] ~ ('<b>' | safe)[1:]
('<' | safe) == '<'
{'<': 1}['<' | safe]
'<' | safe in ['<']
html | urlencode ~ {'a b': 'c/d', 'é': 1} | urlencode ~ [('a', 1)] | urlencode ~ 5 | urlencode
1000000 | filesizeformat ~ 1 | filesizeformat ~ 500 | filesizeformat ~ 123456789 | filesizeformat(true) ~ '2000' | filesizeformat ~ 1e30 | filesizeformat ~ 1024 | filesizeformat(binary=true)
mixed | tojson
d | tojson
people | tojson
u | tojson
'\x00\x1f\x7f\u2028"\\/\b\f' | tojson
u | tojson(ensure_ascii=true)
'\x7f\u0080' | tojson(true)
people | tojson(indent=2)
people | tojson(indent=0)
people | tojson(indent='\t')
[] | tojson(indent=2) ~ {} | tojson(indent=2) ~ [[], {}] | tojson(indent=2)
d | tojson(separators=(',', ':'))
d | tojson(separators=[', ', '='])
d | tojson(indent=2, separators=(',', ':'))
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{1: 2, 'a': 3} | tojson(sort_keys=true)
{1: 2, true: 3, none: 4, 1.5: 5, 'x': 6} | tojson
{(1, 2): 3} | tojson
(1, 2) | tojson
1e400 | tojson ~ (1e400 - 1e400) | tojson ~ 1.0 | tojson ~ 1e16 | tojson ~ -0.0 | tojson
range(3) | tojson
d.items() | tojson
(l | map('string')) | tojson
s.upper | tojson
undefined_name.x | tojson
html | tojson
html | safe | tojson
true | tojson ~ none | tojson ~ 5 | tojson ~ 'x' | tojson
d | tojson(indent=2, foo=1)
d | tojson(4)
d | tojson(false, 4)
people | tojson | length
people[0] | tojson(indent=4) | indent(4, true)
mixed | string
d | string
mixed ~ ''
[s, u, html, lines, '\'', '"', '\'"', '\\', '\x7f', '\u200b', '\U000e0001', '\ue000']
[1.0, 1e100, -0.0, 1e400, 5, true, none, 'x']
[[], {}, (), (1,), {'a': (1, 2)}]
range(3)
range(1, 10, 3) | list ~ range(5, 0, -2) | list ~ range(0) | list ~ range(-3) | list ~ range(3, 1) | list
range(1, 10, 3)
range(1, 5)
range(0, 10, 0)
range('a')
range(1.0)
range()
range(1, 2, 3, 4)
range(100001)
range(100000) | length
range(10) | sum
range(3) == range(3)
range(3) == [0, 1, 2]
dict(a=1, b=2) ~ dict({'x': 1}, y=2) ~ dict([('a', 1)]) ~ dict()
dict(1)
dict([1])
dict(a=1).a
namespace(a=1).a ~ namespace({'b': 2}).b
namespace(a=1)
namespace(a=1).nope is defined
namespace(a=1)['a']
'a' in namespace(a=1)
namespace(a=1) is mapping
namespace() is defined
namespace(1)
cycler('a', 'b').next()
cycler()
joiner()() ~ joiner('|')()
raise_exception('no: ' ~ s)
raise_exception()
raise_exception(5)
raise_exception({'a': 1})
strftime_now('%Y-%m-%d %d %B %b %A %j')
strftime_now('%%|%-d|x|%y|é')
strftime_now('')
strftime_now(5)
strftime_now()
nope_function()
n is defined ~ n is number ~ n is integer ~ n is float ~ f is float ~ f is integer ~ t is integer ~ t is number ~ t is boolean ~ n is boolean
s is string ~ n is string ~ no is none ~ s is none ~ l is sequence ~ s is sequence ~ d is sequence ~ n is sequence ~ l is iterable ~ n is iterable ~ d is mapping ~ l is mapping
undefined_name is sequence ~ undefined_name is iterable ~ undefined_name is mapping ~ undefined_name is string ~ undefined_name is none
d.items() is sequence ~ d.items() is iterable ~ range(3) is sequence ~ (l | map('string')) is iterable ~ (l | map('string')) is sequence ~ (l | map('string')) is defined
t is true ~ t is false ~ n is true ~ z is false ~ no is false ~ false is false
5 is odd ~ 4 is even ~ 4 is odd ~ 9 is divisibleby 3 ~ 9 is divisibleby(2) ~ 2.0 is even
'a' is odd
none is odd
undefined_name is odd
'abc' is lower ~ 'ABC' is upper ~ 'aBC' is lower ~ 5 is lower ~ '' is upper
1 is eq 1 ~ 1 is equalto(1) ~ 1 is ne 2 ~ 1 is lt 2 ~ 2 is gt 1 ~ 1 is le 1 ~ 1 is ge 2 ~ 1 is sameas 1 ~ 1 is sameas true ~ none is sameas none
1 is in [1, 2] ~ 3 is not in [1, 2] ~ 'a' is in 'abc'
range is callable ~ n is callable ~ s.upper is callable ~ namespace is callable
'upper' is filter ~ 'nope' is filter ~ 'odd' is test ~ 'nope' is test
n is not defined ~ undefined_name is not defined ~ not n is defined
n is nope
n is defined and s is string or false
n is number is true
(n is number) is true
n is defined if t else false
n is divisibleby
n | upper is string
'a' is string and not 'b' is none
n | nope
n|string|length
(n)|string
n|default(1)|string ~ 'x'
-n | abs
-(n | string | length)
s.split(', ')[0].lower()[1:3]
(s.split(', ') | map('lower') | list)[1][::-1]
{'a': {'b': [1, {'c': 'deep'}]}}.a.b[1].c
{'a': 1}['a']
{'a': 1}.a
[1, 2, 3][-1]
(1, 2)[0]
'abc'[1]
'abc'.upper()[0]
5()
s()
{}()
s.upper(1)
s.upper(x=1)
s.split(',', 1, 2)
s.split(foo=1)
s.replace(old='l', new='x')
range(stop=3)
s | upper(1)
s | replace
s | replace('a')
l | join('-', 'a', 'b')
dict(**{'a': 1}) ~ dict(*[[('a', 1)]]) ~ '{}{}'.format(*[1, 2]) ~ '{x}'.format(**{'x': 1})
dict(**1)
range(*5)
range(*[1, 4])
dict(a=1, **{'a': 2})
dict(a=1, a=2)
dict(**{1: 2})
range(1, *[4])
range(*[1], 4)
dict(**{'a': 1}, b=2)
range(stop=1, 2)
f(
(1
[1, 2
{'a': 1
{'a'}
{'a': }
[1,,2]
1 +
* 2
1 2
a b
'unterminated
"x' 
{{ 1 }}
a.
a..b
a.'b'
a[
a[]
s[]
a[1:2:3:4]
l[1,]
a |
a | 5
a is
a is 5
a if
a if b else
not
and
1 and
$
a ! b
a & b
a @ b
a ? b : c
x = 1
lambda: 1
a; b
a`b
#
\
true ~ True ~ false ~ False ~ none ~ None
TRUE
null
True.x
loop
loop is defined
caller is defined
varargs is defined
_private is defined
é is defined
变量 is defined
s | 变量
n_1 is defined
_ is defined
1n
"""

EXPRESSIONS = _EXPRESSIONS.strip("\n").split("\n")
