#: a line ends with its line
def area(radius):
    return ‸
#> pi * radius ** 2
#> 
#> 
#> def volume(radius):
#= pi * radius ** 2

#: a block ends where the indentation does
def area(radius):‸
#> 
#>     check(radius)
#>     return pi * radius ** 2
#> 
#> 
#> def volume(radius):
#>     return 4
#= 
#=     check(radius)
#=     return pi * radius ** 2

#: a block at a cursor that is indented already
class Circle:
    def area(self):
        ‸

    def other(self):
        pass
#> if self.radius:
#>             return pi * self.radius ** 2
#>         return 0
#> 
#>     def more(self):
#= if self.radius:
#=             return pi * self.radius ** 2
#=         return 0

#: the bracket behind the cursor is not written again
print(area(‸))
#> radius))
#= radius

#: the rest of the line is not written again
for radius in ‸ radii:
#> all the radii:
#= all the

#: what stands below is not written again
def area(radius):
    square = ‸
    return pi * square
#> radius ** 2
#>     return pi * square
#= radius ** 2

#: a line that the next one says already
def area(radius):
    ‸
    return pi * radius ** 2

area(1)
#> return pi * radius ** 2
#> 
#! stands below already

#: a line that the last one said
values.append(1)
‸
#> values.append(1)
#! stands above already

#: a loop is no completion
raise MCPError.‸
#> from_error(MCPError.from_error(MCPError.from_error(MCPError.from_error(MCPError.from_error(
#! loop

#: whole lines before a loop stay
def f():‸
#> 
#>     start()
#>     step(1)
#>     step(1)
#>     step(1)
#>     step(1)
#= 
#=     start()
#=     step(1)

#: a bracket that closes nothing
total = sum(values)‸
#> )
#! unbalanced brackets

#: code up to a bracket that closes nothing
total = ‸
#> sum(values)) + 1
#= sum(values)

#: brackets in strings and comments close nothing
smile = ‸
#> ":)"  # and :(
#= ":)"  # and :(

#: a block that is not indented
class Circle:
    def area(self):‸
#> 
#>     return 1
#! empty

#: tabs in a document of spaces
if a:
    b()
    c()
if d:‸
#> 
#>     e()
#> 	f()
#= 
#=     e()

#: the path is no code
‸
#> # golden.py
#> import os
#! echo of the path

#: too short
x = ‸
#> 1
#! too short

#: nothing
x = ‸
#> 
#! empty

#: white space at its end goes
x = ‸
#> value   
#> y
#= value

#: no loop: a row of numbers
zeros = ‸
#> [0, 0, 0, 0, 0, 0, 0, 0, 0]
#= [0, 0, 0, 0, 0, 0, 0, 0, 0]

#: no block behind a colon in a string
print("usage:‸")
#>  area RADIUS")
#=  area RADIUS

#: behind a docstring the body is missing
class Circle:
    def area(self):
        """What it covers."""
        ‸

    def other(self):
        pass
#> square = self.radius ** 2
#>         return pi * square
#> 
#>     def more(self):
#= square = self.radius ** 2
#=         return pi * square

#: behind a comment the body is missing
for radius in radii:  # smallest first
    # the unit is metres
    ‸
#> check(radius)
#>     total += pi * radius ** 2
#> print(total)
#= check(radius)
#=     total += pi * radius ** 2

#: a condition over several lines
if (radius is not None
        and radius > 0):‸
#> 
#>     check(radius)
#>     total += radius
#> print(total)
#= 
#=     check(radius)
#=     total += radius

#: a line where the body stands below
def area(radius):
    ‸
    return pi * square
#> square = radius ** 2
#>     cube = radius ** 3
#> 
#= square = radius ** 2

#: a text that is not indented ends no block
def usage():‸
#> 
#>     print("""
#> area RADIUS
#> """)
#>     return 2
#> 
#> def main():
#= 
#=     print("""
#= area RADIUS
#= """)
#=     return 2

#: a call over several lines
parser.add_argument(‸
#> 
#>     "radius",
#>     type=float,
#> )
#> parser.parse_args()
#= 
#=     "radius",
#=     type=float,
#= )

#: a call on one line
parser.add_argument(‸
#> "radius", type=float)
#> parser.add_argument("height")
#= "radius", type=float)

#: an argument of a call over several lines
parser.add_argument(
    "radius",
    ‸
#> type=float,
#>     help="metres",
#> )
#= type=float,

#: arguments before what stands on the line already
parser.add_argument(‸, help="metres")
#> "radius",
#>     type=float
#= "radius"

#: a dictionary over several lines
    limits = {‸
#> 
#>         "least": 1,
#>         "most": [
#>             2,
#>         ],
#>     }
#>     return limits
#= 
#=         "least": 1,
#=         "most": [
#=             2,
#=         ],
#=     }

#: a signature over several lines ends with its header
def area(‸
#> 
#>     radius,
#>     unit="m",
#> ):
#>     return 1
#= 
#=     radius,
#=     unit="m",
#= ):

#: a header is a line
def area‸
#> (radius, height):
#>     return radius * height
#= (radius, height):

#: a text over several lines
    QUERY = """‸
#> 
#>         SELECT area (
#>         FROM circles
#>     """
#>     run(QUERY)
#= 
#=         SELECT area (
#=         FROM circles
#=     """

#: no block in a string
message = f"{‸
#> radius}m"
#> print(message)
#= radius}m"

#: no block in a docstring
def area(radius):
    """What it covers.

    if there is no radius:‸
#> 
#>     nothing is covered.
#>     """
#= 
#=     nothing is covered.

#: no block behind a lambda
    by_size = sorted(circles, key=lambda circle:‸
#>  circle.radius)
#>     return by_size
#=  circle.radius)

#: an arm of a match
match shape:
    case Circle(radius):‸
    case Square(side):
        return side ** 2
#> 
#>         square = radius ** 2
#>         return pi * square
#>     case Line():
#= 
#=         square = radius ** 2
#=         return pi * square

#: a block in broken code
total = sum(
def area(radius):‸
#> 
#>     square = radius ** 2
#>     return pi * square
#> 
#> area(1)
#= 
#=     square = radius ** 2
#=     return pi * square

#: an else
if radius:
    pass
else:‸
#> 
#>     check(radius)
#>     radius = 1
#> print(radius)
#= 
#=     check(radius)
#=     radius = 1
