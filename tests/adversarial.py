"""Completions that hang, crash or swell a grader that calculates in process; found against `math_verify`."""

# https://github.com/huggingface/Math-Verify/issues/65: outlives every alarm, in the main thread too.
HANGS = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}"


def nested(opening: str, core: str, closing: str, depth: int) -> str:
    return opening * depth + core + closing * depth


def matrix(size: int, cell: str) -> str:
    rows = (("&".join(cell.format(i=i, j=j, product=i * j) for j in range(size))) for i in range(size))
    return r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}"


BOXED = {
    "plain": "42",
    "issue 65": HANGS,
    "issue 65 as a tower": "5^{5^{5^{5^5}}}",
    "issue 63": r"\log_{2^5}(\log_{2^4}(\log_{2^3}(\log_{2^2}(\log_{2^1}2^{2^{2^{48}}}))))",
    "tower of tens": "10^{10^{10}}",
    "tower of twos": "2^{2^{2^{2^{2}}}}",
    "tower of nines": "9^{9^{9}}",
    "Python tower": "10**10**10",
    "power of 2^48": "2^{2^{48}}",
    "a billion bits": "2^{1000000000}",
    "a billion bits less one": "2^{1000000000}-1",
    "power of seven": "7^{100000000}+1",
    "power and remainder": r"7^{10^{9}} \mod 13",
    "5,000 parentheses": nested("(", "1", ")", 5000),
    "200 parentheses": nested("(", "1", ")", 200),
    "5,000 open parentheses": "(" * 5000,
    "5,000 braces": nested("{", "1", "}", 5000),
    "six factorials": "9!!!!!!",
    "nested factorials": "(((9!)!)!)!",
    "factorial of a million": "1000000!",
    "factorial of a billion": "1000000000!",
    "binomial": r"\binom{1000000000}{500000000}",
    "sum of powers": r"\sum_{k=1}^{1000000000} k^k",
    "harmonic sum": r"\sum_{k=1}^{1000000} \frac{1}{k}",
    "infinite sum": r"\sum_{n=1}^{\infty} \frac{\sin n}{n^{n}}",
    "product": r"\prod_{k=1}^{1000000} k",
    "integral": r"\int_0^\infty e^{-x^2}\sin(x^3)\,dx",
    "integral of a tower": r"\int_0^1 x^{x^{x}} dx",
    "power of a matrix": matrix(2, "{i}{j}") + "^{100000000}",
    "determinant of letters": r"\det" + matrix(12, "x_{{{i}{j}}}"),
    "40 x 40 matrix": matrix(40, "{product}"),
    "5,000 digits": "1" * 5000,
    "100,000 digits": "1" * 100_000,
    "a million digits": "1" * 1_000_000,
    "power of a sum": "(x+1)^{100000}",
    "power of four letters": "(x+y+z+w)^{300}",
    "continued fraction": nested(r"\frac{1}{1+", "1", "}", 150),
    "nested roots": nested(r"\sqrt{2+", "1", "}", 60),
    "nested sines": nested(r"\sin(", "1", ")", 60),
    "sum of 400 terms": "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(400)),
    "powers of sines": "+".join(rf"\sin^{{{i}}}({i}x)\cos^{{{i}}}({i}y)" for i in range(2, 12)),
    "5,000 words": r"\text{a} " * 5000,
    "NUL and emoji": "4\0002\U0001f600",
    "list of 10,000": ",".join(map(str, range(10_000))),
    "sum of roots": "+".join(rf"\sqrt{{{i}}}" for i in range(2, 60)),
    "equation": r"x^5+y^7+xy^3+\sin(x)=1",
    "polynomial equation": "x^7 - 3x^5 + x - 1 = 0",
    "inequality": r"x^7 - 3x^5 + \sin(x) - 1 > 0",
    "trigonometric equation": r"\sin(x)+\cos(2x)+\tan(3x)=x^3",
    "a million blanks": " " * 1_000_000 + "42",
}
COMPLETIONS = {name: rf"\boxed{{{answer}}}" for name, answer in BOXED.items()} | {
    "Python tower in a sentence": "The final answer is 10**10**10. I hope it is correct.",
    "5,000 open boxes": r"\boxed{" * 5000,
    "2,000 boxes": r"\boxed{1} " * 2000,
    "50,000 dollars": "$" * 50_000,
    "20,000 formulas": "$ a " * 20_000,
    "20,000 brackets": "[" * 20_000,
    "20,000 open formulas": r"\( " * 20_000,
    "8,000 words without an answer": r"Wait, let me reconsider: $x^2+1$ then \( y \) maybe. " * 1200,
    "10,000 answers": "the answer " * 10_000,
}
GOLDS = {
    "issue 65": "$1$",
    "polynomial equation": "$x^7 - 2x^5 + x = 1$",
    "inequality": r"$x^6-x+\cos(x)>1$",
    "trigonometric equation": r"$\sin(2x)+\cos(x)=x^2$",
    "list of 10,000": r"$\{1,2\}$",
    "sum of roots": r"$\sqrt{2}$",
    "equation": "$x^5+y^6+xy^3=2$",
    "power of a sum": "$(1+x)^{100000}-1$",
    "power of four letters": "$x$",
    "40 x 40 matrix": r"$\begin{pmatrix}1\end{pmatrix}$",
}
